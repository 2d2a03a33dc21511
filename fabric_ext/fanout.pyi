from typing_extensions import disjoint_base

@disjoint_base
class FanOut:
    """The items of a turn of the event loop that are sent to many, and which receiver is to get which."""
