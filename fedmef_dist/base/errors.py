"""The one exception that means: the user's input is wrong."""


class UserError(Exception):
    """Something that the user gave is wrong; the command ends with exit status 2.

    The message has one to three lines: what is wrong, where it stands, how to mend it. It is shown as it is, without a
    traceback.
    """
