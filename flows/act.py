"""One change of champion as intent → act → confirm, and the settling of what a crash left open.

The intent is in the ledger before the registry is touched, the confirmation after. Moving the
champion's alias is the one step that counts: an act that was cut off is confirmed if the alias has
moved and abandoned if it has not. Checks nothing: whoever acts has done that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from flows import ledger
from flows.champion import admit, dismiss, holder, point, require_whole, restore, sign
from flows.ledger import Comparison, Line, Look, Model
from flows.registry import SUBJECT
from flows.state import Checkout
from flows.store import Store, opened, project_name
from tasks.core.errors import StillhouseError

Say = Callable[[str], None]


@dataclass(frozen=True)
class Act:
    """What one act writes into each of its ledger lines."""

    checkout: Checkout
    act: ledger.Act
    name: str
    alias: str
    by: str
    reason: str
    commit: str
    model: Model
    former: Model | None
    look: Look | None = None
    comparison: Comparison | None = None

    def write(self, step: ledger.Step, **more: object) -> Line:
        """Append one line."""
        own = {key: value for key, value in vars(self).items() if key != "checkout"}
        return ledger.append(self.checkout, **{**own, "step": step, **more})


def change(store: Store, act: Act) -> Line:
    """Intent, act, confirmation."""
    intent = act.write("intent")
    model = act.model.model_copy(update={"version": admit(store, act.name, act.model)})
    point(store, act.name, act.alias, model, _below(act.checkout, intent))
    return _confirm(act.checkout, store, intent, model)


def _below(checkout: Checkout, intent: Line) -> Model | None:
    """Who will be the previous champion once `intent` is done."""
    if intent.act == "promote":
        return intent.former
    standing = ledger.champions(ledger.read(checkout), intent.name, intent.alias)
    return standing[-3] if len(standing) > 2 else None


def _confirm(checkout: Checkout, store: Store, intent: Line, model: Model) -> Line:
    line = _close(checkout, intent, "confirmed", model=model)
    sign(store, intent.name, line)
    return line


def _close(checkout: Checkout, intent: Line, step: ledger.Step, **more: object) -> Line:
    """A line that ends what `intent` began."""
    same = ("act", "name", "alias", "by", "reason", "commit", "model", "former", "look")
    own = {key: getattr(intent, key) for key in (*same, "comparison")}
    return ledger.append(checkout, **{**own, "step": step, "closes": intent.digest, **more})


def settle(checkout: Checkout) -> list[str]:
    """Close an act that a crash left open, unless somebody is at it; says what was done.

    Every command begins with it. Where ledger or registry cannot be read, those that need them say
    so, and the others go on.
    """
    notes: list[str] = []
    try:
        if ledger.pending(ledger.read(checkout)) is not None:
            with ledger.alone(checkout), opened(checkout) as store:
                close_open_act(checkout, store, notes.append)
    except StillhouseError:
        return []
    return notes


def put_back(checkout: Checkout) -> list[str]:
    """Champions that a wiped registry has lost, back from their sealed bundles; says which."""
    if not ledger.read(checkout):
        return []
    with opened(checkout) as store:  # whoever acts holds it to the end: what he wrote is read then
        return restore(checkout, store, project_name(checkout), ledger.read(checkout))


def close_open_act(checkout: Checkout, store: Store, say: Say) -> None:
    """Confirm or abandon the act that the ledger leaves open, if there is one."""
    lines = ledger.read(checkout)
    intent = ledger.pending(lines)
    if intent is None:
        return
    require_whole(checkout, store, intent.name, lines)
    held = holder(store, intent.name, intent.alias)
    if held is not None and held.tags.get(SUBJECT) == intent.model.subject:
        model = intent.model.model_copy(update={"version": int(held.version)})
        point(store, intent.name, intent.alias, model, _below(checkout, intent))
        _confirm(checkout, store, intent, model)
        say(f"confirmed a {intent.act} that was cut off: version {held.version} is {intent.alias}")
        return
    if intent.act == "promote":
        dismiss(store, intent.name, intent.model, lines)
    why = "cut off before the champion's alias was moved"
    sign(store, intent.name, _close(checkout, intent, "abandoned", why=why))
    say(f"abandoned a {intent.act} that was cut off: the champion is as before; do it again")
