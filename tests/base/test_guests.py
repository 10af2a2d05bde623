import sys

import pytest

from fedmef_dist.base import guests
from fedmef_dist.base.errors import UserError
from fedmef_dist.base.guests import GuestSettings, Kind, call, find, is_guest, lent, nearest, qualified_name


def refusal(name, kind=Kind.METHOD):
    with pytest.raises(UserError) as caught:
        find(kind, name, "method.name")
    return caught.value


@pytest.fixture
def module(outside):
    """`module("a/b.py", "text")` writes a file below the working directory."""

    def write(path, text):
        (outside / path).parent.mkdir(parents=True, exist_ok=True)
        (outside / path).write_text(text)
        return outside / path

    return write


def test_a_file_below_the_working_directory_is_found_though_python_does_not_look_there(module):
    module("mine.py", "class Outer:\n    class Inner:\n        x = 3\n")
    module("deep/er.py", "y = 4\n")
    assert find(Kind.METHOD, "mine:Outer.Inner", "method.name").x == 3
    assert find(Kind.METHOD, "deep.er:y", "method.name") == 4


def test_an_installed_module_wins_over_a_file_of_the_same_name(module):
    module("json.py", "raise RuntimeError\n")
    assert find(Kind.METHOD, "json:dumps", "method.name").__module__ == "json"


def test_a_file_is_found_though_its_folder_has_the_name_of_an_installed_package(module):
    path = module("email/own_part.py", "import sys\nhere = __file__\n")
    assert find(Kind.METHOD, "email.own_part:here", "method.name") == str(path)
    module("email/broken.py", "1 / 0\n")
    assert refusal("email.broken:x").where.startswith(str(path.with_name("broken.py")))
    assert "email.broken" not in sys.modules


def test_a_module_that_is_not_there_is_named_with_the_places_and_the_nearest(module, outside):
    module("pkg/method.py", "")
    error = refusal("pkg.methods:X")
    assert error.what == "there is no module pkg.methods"
    assert error.where == f"method.name=pkg.methods:X; looked in {outside} and on Python's path"
    assert error.mend == "did you mean pkg.method?"
    assert refusal("other.qqqq:X").mend == f"put it at {outside}/other/qqqq.py"


def test_a_name_that_its_module_has_not_gets_the_nearest(module):
    path = module("mine.py", "class RandomGrowth: pass\n")
    error = refusal("mine:RandomGroth")
    assert error.what == "mine has no RandomGroth"
    assert error.where == f"method.name=mine:RandomGroth; looked in {path}"
    assert error.mend == "did you mean RandomGrowth?"
    assert refusal("mine:qqqq").mend == "define qqqq there"


@pytest.mark.parametrize("name", ["mine:", ":X", "a b:X", "mine:X Y", "mine.py:X.", "../mine:X", "mine:f()"])
def test_what_is_no_name_is_refused_before_anything_is_imported(module, name):
    module("mine.py", "raise RuntimeError\n")
    assert refusal(name).mend == "write package.module:Name"


@pytest.mark.parametrize(
    ("text", "line", "kind"),
    [
        ("x = 1\n\nraise ValueError('no good')\n", 3, ValueError),
        ("import numpy as np\nnp.zeros(-1)\n", 2, ValueError),
        ("def f():\n    return missing\n\nf()\n", 2, NameError),
        ("x = (\n", 1, SyntaxError),
        ("\nimport a_package_that_nobody_has\n", 2, ModuleNotFoundError),
        ("import sys\nsys.exit(3)\n", 2, SystemExit),
    ],
)
def test_an_exception_in_the_module_is_told_with_its_file_and_line_and_its_cause(module, text, line, kind):
    path = module("mine.py", text)
    error = refusal("mine:X")
    assert error.what.startswith(f"mine cannot be imported: {kind.__name__}: ")
    assert error.where == f"{path}, line {line} (method.name=mine:X)"
    assert isinstance(error.__cause__, kind)
    assert "mine" not in sys.modules


def test_an_entry_point_is_found_by_its_name(module, outside, monkeypatch):
    module("theirs.py", "class Method:\n    pass\n")
    module("theirs-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    module("theirs-1.0.dist-info/entry_points.txt", "[fedmef_dist.methods]\nnewest = theirs:Method\n")
    monkeypatch.setattr(sys, "path", [*sys.path, str(outside)])
    guests.entry_point_names.cache_clear()
    try:
        assert is_guest(Kind.METHOD, "newest")
        assert not is_guest(Kind.MODEL, "newest")
        assert "theirs" not in sys.modules
        assert find(Kind.METHOD, "newest", "method.name").__name__ == "Method"
        module("others-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: others\nVersion: 1.0\n")
        module("others-1.0.dist-info/entry_points.txt", "[fedmef_dist.methods]\nnewest = others:Method\n")
        assert refusal("newest").what.endswith("but 2 of them: others:Method, theirs:Method")
        assert refusal("nothing").what == "not one entry point nothing in the group fedmef_dist.methods, but none"
    finally:
        guests.entry_point_names.cache_clear()


def test_what_is_lent_is_found_by_kind_and_name_while_it_is_lent():
    with lent({(Kind.MODEL, "mine:f"): len}), lent({(Kind.MODEL, "g"): max}):
        assert find(Kind.MODEL, "mine:f", "model.name") is len
        assert is_guest(Kind.MODEL, "g")
        assert not is_guest(Kind.METHOD, "g")
    assert not is_guest(Kind.MODEL, "g")


def test_what_a_program_lent_to_an_earlier_run_is_named_as_such():
    for name in ("object:stripes", "mine:Tracker#2"):
        assert refusal(name).what == f"{name} is an object that a program gave to the run"


def test_a_class_of_a_script_gets_the_name_of_the_script(monkeypatch):
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    monkeypatch.setattr(sys.modules["__main__"], "__file__", "/somewhere/study.py", raising=False)
    own = type("Own", (), {"__module__": "__main__"})
    assert qualified_name(own) == "study:Own"
    assert qualified_name(GuestSettings) == "fedmef_dist.base.guests:GuestSettings"


def build(*, classes, depth=2):
    return classes * depth // (depth - 3)


def test_a_call_that_does_not_fit_names_the_argument_and_the_nearest():
    with pytest.raises(UserError, match="mine:build does not take dept") as caught:
        call("mine:build", build, "model.options", {"dept": 1}, {"classes": 3})
    assert (caught.value.where, caught.value.mend) == ("model.options", "did you mean depth?")
    with pytest.raises(UserError, match="mine:build needs classes"):
        call("mine:build", build, "model.options", {"depth": 1})
    with pytest.raises(UserError, match="it takes classes, depth"):
        call("mine:build", build, "model.options", {"classes": 1, "qqqq": 1})
    assert call("mine:build", build, "model.options", {"depth": 4}, {"classes": 3}) == 12
    assert call("dict", dict, "options", {"name": 1}) == {"name": 1}  # written in C: it tells no arguments


def test_what_every_run_gives_itself_is_no_option():
    with pytest.raises(UserError, match="every run gives classes itself") as caught:
        call("mine:build", build, "model.options", {"classes": 3}, {"classes": 4})
    assert (caught.value.where, caught.value.mend) == ("model.options", "leave classes out")


def test_an_exception_of_a_call_is_told_with_file_and_line_and_its_cause():
    with pytest.raises(UserError, match="mine:build failed: ZeroDivisionError") as caught:
        call("mine:build", build, "model.options", {"classes": 3, "depth": 3})
    assert caught.value.where == f"{__file__}, line {build.__code__.co_firstlineno + 1}"
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_an_entry_is_a_name_or_a_name_with_options():
    assert GuestSettings.model_validate("a:B") == GuestSettings.model_validate({"name": "a:B"})
    entry = GuestSettings.model_validate({"name": "a:B", "patience": 3, "deep": {"x": [1, None]}})
    assert entry.options == {"patience": 3, "deep": {"x": [1, None]}}
    assert entry.model_dump(mode="json") == {"name": "a:B", "patience": 3, "deep": {"x": [1, None]}}
    for wrong in ({"patience": 3}, {"name": ""}, {"name": "a:B", "x": float("nan")}, {"name": "a:B", "x": object()}, 3):
        with pytest.raises(ValueError, match="GuestSettings"):
            GuestSettings.model_validate(wrong)


def test_the_nearest_name_holds_the_wrong_one_or_resembles_it():
    assert nearest("mnist", ["femnist", "digits"]).startswith(
        "did you mean femnist? choose one of femnist, digits, or "
    )
    assert nearest("qq", ["a"]) == "choose one of a, or write package.module:Name for your own"
    assert nearest("qq", []) == "write package.module:Name for your own"
