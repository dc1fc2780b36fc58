"""The plots: who does what to whom, told as calls on the world.

Each plot takes a world, its cast and the mood in which the hero (``a``) is left, and makes
that mood come true. Every plot can end in every mood, and most pass through other feelings
on the way, so neither the plot nor one word gives the mood away.
"""

from __future__ import annotations

from collections.abc import Callable

from stories_lexicon import (
    BUILDINGS,
    DISHES,
    ELDERS,
    HOME,
    INGREDIENTS,
    KITCHENS,
    NOUNS,
    OUTDOORS,
    SHOPS,
)
from stories_scenes import (
    Cast,
    beat,
    begin,
    borrow,
    drop_in_fright,
    finish,
    maybe,
    meet,
    outdoors,
    spot,
    thing,
    threat,
    tool,
    walk,
    walk_together,
)
from stories_world import Phrase, Spot, World

# Spots too small to hide a person.
_SMALL = {"bucket", "basket", "net", "clover", "gate", "fence", "ladder", "shelf", "chair"}

# Plots -----------------------------------------------------------------------------------


def lost(w: World, k: Cast, mood: str) -> None:
    """The hero loses something without noticing, and goes back to look for it with a friend."""
    begin(w, k.a, k.p)
    w.gain("own", k.a, k.t)
    walk(w, k.a, k.q)
    w.put("slip", k.a, k.t, spot(w.rng, k.q, k.t))
    returns = maybe(w, 0.4)
    if returns:
        walk(w, k.a, k.p, "go.back")
    else:
        beat(w, k.a)
    w.tell("missed", a=k.a, t=k.t)
    meet(w, k.b, k.a)
    w.tell("offer.look", a=k.a, b=k.b, t=k.t)
    if returns:
        walk_together(w, k.a, k.b, k.q)
    if mood == "happy":
        finder = w.rng.choice([k.a, k.b])
        w.gain("find", finder, k.t, verb="find")
        if finder is k.b:
            w.give("return", k.b, k.a, k.t, verb="")
            if maybe(w, 0.4):
                w.give("reward", k.a, k.b, k.t)
        finish(w, k.a, mood)
    elif mood == "sad":
        w.tell("search.vain", a=k.a, b=k.b, t=k.t)
        finish(w, k.a, mood)
    elif mood == "angry":
        meet(w, k.c, k.a)
        w.gain("find", k.c, k.t, verb="find")
        w.tell("refuse", a=k.a, b=k.c, t=k.t)
        finish(w, k.a, mood, k.c)
    else:
        w.tell("search", a=k.a, b=k.b, t=k.t)
        threat(w, k.a)


def gift(w: World, k: Cast, mood: str) -> None:
    """A birthday present, made or bought, and its way to the friend."""
    begin(w, k.a, k.p)
    w.tell("birthday", a=k.a, b=k.b, p=k.q)
    if k.t.noun.group in ("treasure", "music") or k.t.adjective == "old" or maybe(w):
        shop = k.p if k.p in SHOPS else w.rng.choice([s for s in SHOPS if s is not k.q])
        if shop is not k.p:
            walk(w, k.a, shop, "go.errand")
        w.gain("buy", k.a, k.t, verb="buy")
    else:
        w.gain("make", k.a, k.t, verb="make")
    beat(w, k.a)
    if mood == "scared":
        road = w.rng.choice([x for x in OUTDOORS if x not in (k.q, w.place(k.a))])
        walk(w, k.a, road)
        if maybe(w):
            drop_in_fright(w, k.a, k.t)
        threat(w, k.a)
        return
    walk(w, k.a, k.q)
    if mood == "happy":
        w.arrive("waiting", k.b, k.q)
        w.give("give.birthday", k.a, k.b, k.t)
        w.tell("thanks", a=k.b, b=k.a)
        finish(w, k.a, mood)
    elif mood == "sad" and maybe(w):
        w.tell("broken.trip", a=k.a, t=k.t)
        w.arrive("waiting", k.b, k.q)
        w.tell("empty.hands", a=k.a, b=k.b, t=k.t)
        finish(w, k.a, mood)
    elif mood == "sad":
        w.tell("nobody", a=k.a, b=k.b, p=k.q)
        w.put("leave", k.a, k.t, spot(w.rng, k.q, k.t))
        finish(w, k.a, mood)
    else:
        meet(w, k.c, k.a)
        w.give("snatch", k.a, k.c, k.t, verb="")
        w.tell("refuse", a=k.a, b=k.c, t=k.t)
        finish(w, k.a, mood, k.c)


def trade(w: World, k: Cast, mood: str) -> None:
    """Two friends swap; at times the friend hands it on."""
    begin(w, k.a, k.p)
    w.gain("own", k.a, k.t)
    meet(w, k.b, k.a)
    w.gain("own", k.b, k.u)
    w.tell("wish", a=k.a, b=k.b, t=k.t, u=k.u)
    w.swap("swap", k.a, k.b, k.t, k.u)
    beat(w, k.a, k.b)
    passed = maybe(w)
    if passed:
        meet(w, k.c, k.b)
        w.give("give", k.b, k.c, k.t)
    if mood == "happy":
        w.tell("play", a=k.a, t=k.u)
        w.tell("pleased", a=k.a, t=k.u)
        finish(w, k.a, mood)
    elif mood == "sad":
        w.tell("regret", a=k.a, t=k.t, u=k.u)
        w.tell("too.late", a=k.a, b=k.c if passed else k.b, t=k.t)
        finish(w, k.a, mood)
    elif mood == "angry":
        w.tell("cheated", a=k.a, b=k.b, t=k.u)
        finish(w, k.a, mood, k.b)
    else:
        if maybe(w):
            walk(w, k.a, k.q)
        if maybe(w):
            drop_in_fright(w, k.a, k.u)
        threat(w, k.a)


def delivery(w: World, k: Cast, mood: str) -> None:
    """The hero is to bring something to somebody, and has company on the road."""
    sender = w.rng.choice([e for e in ELDERS if e is not k.c])
    food = thing(w.rng, w.rng.choice([n for n in NOUNS if n.group in ("food", "tool")]))
    begin(w, k.a, k.p)
    w.arrive("meet.elder", sender, k.p, b=k.a)
    w.gain("own.elder", sender, food)
    w.give("send", sender, k.a, food, c=k.c, p=k.q)
    road = k.r if not k.r.indoors else w.rng.choice([x for x in OUTDOORS if x not in (k.p, k.q)])
    walk(w, k.a, road)
    meet(w, k.b, k.a)
    w.tell("along", a=k.a, b=k.b)
    beat(w, k.a, k.b)
    carrier = k.a
    if mood == "angry" or maybe(w):
        w.give("carry", k.a, k.b, food, verb="")
        carrier = k.b
    if mood == "scared":
        if carrier is k.a and maybe(w):
            drop_in_fright(w, k.a, food)
        threat(w, k.a)
        return
    if mood == "angry":
        if food.noun.group == "food" and maybe(w):
            w.lose("eaten.all", food, a=k.b, b=k.a)
        else:
            w.go("run.off", [k.b], k.p, t=food)
        finish(w, k.a, mood)
        return
    walk_together(w, k.a, k.b, k.q)
    if mood == "sad" and maybe(w):
        w.tell("nobody", a=k.a, b=k.c, p=k.q)
        w.put("leave", carrier, food, spot(w.rng, k.q, food))
        finish(w, k.a, mood)
        return
    w.arrive("waiting", k.c, k.q)
    if mood == "sad":
        w.lose("spilled", food, a=carrier)
        w.tell("empty.hands", a=k.a, b=k.c, t=food)
    else:
        w.give("deliver", carrier, k.c, food)
        w.tell("thanks", a=k.c, b=k.a)
    finish(w, k.a, mood)


def rescue(w: World, k: Cast, mood: str) -> None:
    """The friend's treasure is out of reach; the hero borrows a tool to get it back."""
    p = outdoors(w, k)
    wet = p.topic == "water"
    helper = tool(w.rng, "net", "rope") if wet else tool(w.rng, "ladder", "rope")
    high = Spot("in", "water" if wet else "tree", p)
    begin(w, k.a, p)
    meet(w, k.b, k.a)
    w.gain("own", k.b, k.t)
    w.put("stuck.water" if wet else "stuck.tree", k.b, k.t, high)
    w.tell("plea", a=k.a, b=k.b, t=k.t)
    borrow(w, k.a, k.c, helper, k.q, chance=0.4)
    if mood == "scared":
        w.feel("high.water" if wet else "high.tree", k.a, mood, t=k.t, u=helper)
        finish(w, k.a, mood, home=False)
        return
    w.gain("reach", k.a, k.t, u=helper)
    if mood == "sad":
        w.tell("broken", a=k.a, t=k.t)
    w.give("return", k.a, k.b, k.t, verb="")
    if mood == "happy":
        w.tell("thanks", a=k.b, b=k.a)
        finish(w, k.a, mood)
    elif mood == "sad":
        w.tell("silence", a=k.b, t=k.t)
        finish(w, k.a, mood)
    else:
        w.tell("no.thanks", a=k.b, b=k.a, t=k.t)
        finish(w, k.a, mood, k.b)


def hiding(w: World, k: Cast, mood: str) -> None:
    """Hide and seek; the hero counts, or hides."""
    begin(w, k.a, k.p)
    meet(w, k.b, k.a)
    meet(w, k.c, k.a)
    w.tell("game", a=k.a, b=k.b, c=k.c, p=k.p)
    spots = [Spot(*s, k.p) for s in k.p.spots if s[1] not in _SMALL]
    first, second = w.rng.sample(spots, 2)
    if mood == "scared" or (mood == "sad" and maybe(w)):
        w.tell("count", a=k.b)
        w.hide("hide", k.a, first)
        w.hide("hide", k.c, second)
        if mood == "scared":
            w.feel("hide.dark", k.a, mood, s=first)
            finish(w, k.a, mood, home=False)
        else:
            w.go("hide.leave", [k.b, k.c], HOME, c=k.a)
            finish(w, k.a, mood, home=False)
        return
    w.tell("count", a=k.a)
    w.hide("hide", k.b, first)
    w.hide("hide", k.c, second)
    beat(w, k.a)
    if mood == "happy":
        found = w.rng.choice([k.b, k.c])
        w.tell("seek.found", a=k.a, b=found, s=first if found is k.b else second)
        w.tell("seek.all", a=k.a, b=k.b, c=k.c)
        finish(w, k.a, mood)
    elif mood == "sad":
        w.go("hide.leave", [k.b, k.c], HOME, c=k.a)
        finish(w, k.a, mood)
    else:
        w.tell("seek.found", a=k.a, b=k.c, s=second)
        w.tell("blamed", a=k.b, b=k.a)
        finish(w, k.a, mood, k.b)


def cooking(w: World, k: Cast, mood: str) -> None:
    """A dish for somebody, an ingredient from a friend."""
    kitchen = k.p if k.p in KITCHENS else w.rng.choice([x for x in KITCHENS if x is not k.q])
    dish = Phrase(w.rng.choice(sorted(DISHES)), "what")
    missing = thing(w.rng, INGREDIENTS[w.rng.choice(DISHES[dish.words])])
    begin(w, k.a, kitchen)
    w.tell("dish", a=k.a, c=k.c, d=dish)
    w.tell("missing", a=k.a, t=missing)
    walk(w, k.a, k.q, "go.errand")
    meet(w, k.b, k.a)
    w.gain("own.some", k.b, missing)
    w.give("give", k.b, k.a, missing)
    beat(w, k.a, k.b, 0.3)
    if mood == "scared" and maybe(w, 0.4):
        if maybe(w):
            drop_in_fright(w, k.a, missing)
        threat(w, k.a)
        return
    walk_together(w, k.a, k.b, kitchen)
    w.lose("cook", missing, a=k.a, d=dish)
    if mood == "happy":
        w.arrive("guest", k.c, kitchen)
        w.tell("tasty", a=k.a, b=k.c, d=dish)
    elif mood == "sad":
        w.tell("burned", a=k.a, d=dish)
    elif mood == "angry":
        w.tell("gobbled", a=k.b, b=k.a, c=k.c, d=dish)
        finish(w, k.a, mood, k.b)
        return
    else:
        w.tell("fire", a=k.a, d=dish)
    finish(w, k.a, mood)


def building(w: World, k: Cast, mood: str) -> None:
    """Two friends build something with a borrowed tool."""
    p = outdoors(w, k)
    work = Phrase(w.rng.choice(BUILDINGS), "what")
    helper = tool(w.rng, "hammer", "rope", "spade", "bucket")
    begin(w, k.a, p)
    meet(w, k.b, k.a)
    w.tell("plan", a=k.a, b=k.b, d=work)
    runner = w.rng.choice([k.a, k.b])
    w.tell("need", a=runner, t=helper)
    borrow(w, runner, k.c, helper, k.q, chance=0.6)
    if maybe(w, 0.3):
        w.give("pass", runner, k.b if runner is k.a else k.a, helper, verb="")
    w.tell("build", a=k.a, b=k.b, d=work)
    beat(w, k.a, k.b, 0.3)
    if mood == "happy":
        w.tell("built", a=k.a, b=k.b, d=work)
        finish(w, k.a, mood)
    elif mood == "sad":
        w.tell("collapse", a=k.a, b=k.b, d=work)
        finish(w, k.a, mood)
    elif mood == "angry":
        w.tell("kicked", a=k.b, b=k.a, d=work)
        finish(w, k.a, mood, k.b)
    else:
        w.tell("built.inside", a=k.a, b=k.b, d=work)
        threat(w, k.a)


def borrowing(w: World, k: Cast, mood: str) -> None:
    """The hero lends something, the friend lends it on, the hero asks for it."""
    begin(w, k.a, k.p)
    w.gain("own", k.a, k.t)
    meet(w, k.b, k.a)
    w.give("lend.ask", k.a, k.b, k.t)
    walk(w, k.b, k.q)
    meet(w, k.c, k.b)
    w.give("give.on", k.b, k.c, k.t)
    w.go("ask.back", [k.a], k.q, b=k.b, t=k.t)
    if maybe(w):
        w.tell("told", a=k.b, b=k.a, c=k.c, t=k.t)
    if mood == "happy":
        w.give("return", k.c, k.a, k.t, verb="")
        if maybe(w, 0.3):
            w.give("reward", k.a, k.b, k.t)
        finish(w, k.a, mood)
    elif mood == "sad":
        w.tell("confess", a=k.c, b=k.a, t=k.t)
        finish(w, k.a, mood)
    elif mood == "angry":
        w.tell("refuse", a=k.a, b=k.c, t=k.t)
        finish(w, k.a, mood, k.c)
    else:
        far = Spot("in", w.rng.choice(["cave", "cellar", "tower", "tunnel"]), k.q)
        w.put("put.dark", k.c, k.t, far, b=k.a)
        w.feel("dare.dark", k.a, mood, s=far)
        finish(w, k.a, mood)


def treasure(w: World, k: Cast, mood: str) -> None:
    """An old map leads two friends to a hidden thing."""
    paper = thing(w.rng, next(noun for noun in NOUNS if noun.word == "map"))
    prize = thing(w.rng, w.rng.choice([n for n in NOUNS if n.group in ("treasure", "music")]))
    begin(w, k.a, k.p)
    here, there = spot(w.rng, k.p, paper), spot(w.rng, k.q, prize)
    w.lay("map", paper, here, a=k.a)
    w.gain("pick.up", k.a, paper, verb="find")
    meet(w, k.b, k.a)
    if maybe(w):
        w.give("show", k.a, k.b, paper, verb="")
    walk_together(w, k.a, k.b, k.q)
    beat(w, k.a, k.b)
    if mood == "sad":
        w.tell("nothing", a=k.a, b=k.b, s=there)
        finish(w, k.a, mood)
        return
    if mood == "scared":
        w.hide("crawl", k.a, there)
        threat(w, k.a)
        return
    w.lay("hint", prize, there, a=k.a, b=k.b)
    if mood == "happy":
        w.gain("find", k.a, prize, verb="find")
        if maybe(w):
            w.give("share", k.a, k.b, prize)
        finish(w, k.a, mood)
    else:
        w.gain("find", k.a, prize, verb="find")
        w.give("snatch", k.a, k.b, prize, verb="")
        w.tell("refuse", a=k.a, b=k.b, t=prize)
        finish(w, k.a, mood, k.b)


Plot = Callable[[World, Cast, str], None]
PLOTS: tuple[Plot, ...] = (
    lost, gift, trade, delivery, rescue, hiding, cooking, building, borrowing, treasure,
)  # fmt: skip
