"""What Slurm says about a job's nodes: host lists, tasks per node, addresses."""

import re
import subprocess

from fedmef_dist.base.errors import UserError

# One comma-separated element of a host list: a run of plain characters and bracketed ranges, "rack[1-2]n[01,03-05]".
_ELEMENT = re.compile(r"(?:[^,\[\]]|\[[^\[\]]*\])+")
_PART = re.compile(r"\[([^\[\]]*)\]|([^\[\]]+)")
_RANGE = re.compile(r"(\d+)(?:-(\d+))?")
_TASKS = re.compile(r"(\d+)(?:\(x(\d+)\))?")


def expand_hosts(nodelist: str) -> list[str]:
    """The node names of a Slurm host list in its order, "n[08-10],m1" is n08, n09, n10, m1.

    Raises UserError where the text is not a host list.
    """
    elements = _ELEMENT.findall(nodelist)
    if not elements or ",".join(elements) != nodelist:
        raise _malformed(nodelist)
    return [name for element in elements for name in _expand_element(element, nodelist)]


def _expand_element(element: str, nodelist: str) -> list[str]:
    names = [""]
    for ranges, plain in _PART.findall(element):
        choices = [plain] if plain else [n for part in ranges.split(",") for n in _expand_range(part, nodelist)]
        names = [name + choice for name in names for choice in choices]
    return names


def _expand_range(part: str, nodelist: str) -> list[str]:
    match = _RANGE.fullmatch(part)
    if match is None:
        raise _malformed(nodelist)
    first, last = match[1], match[2] or match[1]
    return [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]


def _malformed(nodelist: str) -> UserError:
    return UserError(f"not a Slurm host list: {nodelist!r}", where="SLURM_STEP_NODELIST or SLURM_JOB_NODELIST")


def expand_tasks(tasks_per_node: str) -> list[int]:
    """Tasks on each node of a step: "2(x3),1" is [2, 2, 2, 1]. Raises UserError where the text has another form."""
    counts: list[int] = []
    for part in tasks_per_node.split(","):
        match = _TASKS.fullmatch(part)
        if match is None:
            raise UserError(f"not a list of tasks per node: {tasks_per_node!r}", where="SLURM_STEP_TASKS_PER_NODE")
        counts += [int(match[1])] * int(match[2] or 1)
    return counts


def node_address(node: str) -> str | None:
    """The NodeAddr that the controller knows for a node, None where scontrol does not answer or does not know it."""
    try:
        # A node's reason and comment are whatever somebody has typed.
        words = ["scontrol", "show", "node", node]
        shown = subprocess.run(words, capture_output=True, text=True, errors="replace", timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r"\bNodeAddr=(\S+)", shown.stdout)
    return match[1] if match else None
