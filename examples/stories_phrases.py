"""The sentences of the stories: for each kind of event, ways to tell it.

Fields are explained in ``stories_telling.py``. By habit ``a`` is who acts, ``b`` whom it is
done to, ``t`` the thing, ``p`` a place and ``s`` a spot in it.
"""

from __future__ import annotations

from stories_feelings import FEELINGS

BEGINNINGS: dict[str, tuple[str, ...]] = {
    "open": (
        "One {when}, {a.new} was {p.in}.",
        "It was {when.a}, and {a.new} was {p.in}.",
        "Once there was {a.new}. One {when}, {a.he} was {p.in}.",
        "On {when.a}, {a.new} came {p.to}.",
        "{a.new} spent {when.a} {p.in}.",
        "There once was {a.new} who loved {p}. One {when} {a.he} was there again.",
        "This is the story of {a.new}. It begins on {when.a} {p.in}.",
    ),
    "about": (
        "{A} was small, but very brave.",
        "{A} was always hungry.",
        "{A} liked long walks and short naps.",
        "Everybody knew {a.him} and liked {a.him}.",
        "{A} had nothing to do.",
        "{A} had been up since sunrise.",
        "{A} could whistle like a bird.",
        "{A} was in no hurry at all.",
        "{A} was humming a little song.",
    ),
    "own": (
        "{A} had {t.a}.",
        "{A} had {t.a} and loved to {t.use}.",
        "{A} was carrying {t.a}.",
        "In {a.s} bag there {t.was} {t.a}.",
        "{A} had brought {t.a}.",
        "{A} never went anywhere without {t.a}.",
        "The best thing that {a} owned {t.was} {t.a}.",
    ),
    "own.elder": ("{A} had {t.a}.", "{A} was carrying {t.a}.", "{A} had brought {t.a} along."),
    "own.tool": ("{A} had {t.a}.", "By good luck {a} owned {t.a}.", "{A} was carrying {t.a}."),
    "own.some": (
        "{a} had plenty, and they were {t.adj}.",
        "{a} had a whole bag of {t.adj} {t.noun}.",
        "As it happened, {a} had {t.a} to spare.",
    ),
    "meet": (
        "Just then {a.new} came by.",
        "There {b} met {a.new}.",
        "{A.new} was there too and said hello.",
        '"Hello!" called {a.new} and came closer.',
        "Before long {a.new} came along.",
        "{b} was not alone for long, for {a.new} turned up.",
        "{a.new} sat there and waved.",
    ),
    "meet.elder": (
        "Just then {a} came by.",
        "There {b} met {a}.",
        "{a} was there too and waved at {b}.",
        '"Good day!" called {a} and came closer.',
        "Before long {a} came along.",
        "{b} saw {a} there and said hello.",
    ),
    "waiting": (
        "{a} was waiting there.",
        "{a} was already there and looking around.",
        "{a} came out to say hello.",
        "There {a} was, humming a song.",
    ),
    "guest": ("When it was ready, {a} came.", "At noon {a} knocked at the door.",
              "{a} came in and sniffed the air."),
    "birthday": (
        "It was the birthday of {a.his} friend {b}, who was {p.in}.",
        "{a.his} friend {b} was having a birthday party {p.in}.",
        "{A} wanted to go to the birthday party of {a.his} friend {b} {p.in}.",
    ),
    "dish": (
        "{A} wanted to make {d} for {c}.",
        '"Today I will make {d} for {c}," said {a}.',
        "{c} was coming to eat, and {a} had promised to make {d}.",
    ),
    "game": (
        '"Let us play hide and seek!" said {b}, and {c} clapped.',
        "{a}, {b} and {c} wanted to play hide and seek {p.in}.",
        "{c} and {b} knew a good game: hide and seek.",
    ),
    "plan": (
        '"Let us build {d.a}!" said {b}.',
        "{a} and {b} had a plan: they~who would build {d.a}.",
        "{B} was trying to build {d.a}, and {a} wanted to help.",
    ),
}  # fmt: skip

MOVES: dict[str, tuple[str, ...]] = {
    "go": (
        "{then} {A} {v.past} {p.to}.",
        "{then} {A} {v.past} all the way {p.to}.",
        "{A} wanted to see {p}, so {a.he} {v.past} there.",
        "{then} {A} set off for {p}.",
        "{A} felt like a walk and {v.past} {p.to}.",
        "From there {a} {v.past} {p.to}.",
    ),
    "go.errand": (
        "{then} {A} {v.past} {p.to}.",
        "{A} knew where to go and {v.past} {p.to}.",
        "So {a} ran {p.to} as fast as {a.he} could.",
        "It was not far, and {a} {v.past} {p.to}.",
        "{A} thought for a moment and then {v.past} {p.to}.",
    ),
    "go.back": (
        "{then} {A} {v.past} back {p.to}.",
        "{then} it was time to turn around, and {a} {v.past} back {p.to}.",
        "{A} {v.past} the same way back {p.to}.",
        "With quick steps {a} went back {p.to}.",
    ),
    "go.two": (
        "{then} {a} and {b} {v.past} {p.to} together.",
        '"Come with me {p.to}!" said {a}, and {b} came along.',
        "Side by side {a} and {b} {v.past} {p.to}.",
        "{a} {v.past} {p.to}, and {b} went along.",
        "{a} and {b} took the short way {p.to}.",
    ),
    "ask.back": (
        "The next day {a} wanted to have {t} again and went {p.to} to ask {b}.",
        "After some time {a} missed {t} and went {p.to} to look for {b}.",
    ),
    "run.off": (
        "But {a} liked {t} too much, turned around and ran off with {t.it} {p.to}.",
        '"Now {t.they} {t.is} mine!" called {a}, and ran away {p.to} with {t}.',
    ),
    "hide": (
        "{a} hid {s.in}.",
        "{a} crept away and hid {s.in}.",
        "{a} found a place {s.in} and kept very still.",
    ),
    "hide.leave": (
        "But {a} and {b} got hungry, forgot the game and went {p.to}. {c} was left alone.",
        "{a} and {b} thought that the game was over and went {p.to} without a word to {c}.",
    ),
    "crawl": (
        "{A} crawled in to look {s.in}.",
        '"I will look {s.in}," said {a}, and in {a.he} went.',
    ),
    "count": (
        "{a} closed {a.his} eyes and counted to twenty.",
        '"One, two, three," counted {a} with {a.his} eyes shut.',
    ),
}  # fmt: skip

TRANSFERS: dict[str, tuple[str, ...]] = {
    "make": (
        "{A} made {t.a} as a present.",
        "{A} worked for a long time and made {t.a}.",
        '"I will make something," thought {a}, and {a.he} made {t.a}.',
    ),
    "buy": (
        "There {a} bought {t.a}.",
        "{A} looked around and bought {t.a}.",
        "{A} paid two pennies for {t.a}.",
    ),
    "give": (
        "{a} gave {t} to {b}.",
        '"This is for you," said {a} and gave {t} to {b}.',
        "{a} held out {t}, and {b} took {t.it}.",
        '"Take {t.it}," said {a}, and {b} took {t}.',
    ),
    "give.on": (
        "{b} asked for {t}, and {a} gave {t.it} away.",
        "{b} liked {t} as well, so {a} let {b} have {t.it}.",
        '"May I try?" asked {b}, and {a} passed {t} on to {b}.',
    ),
    "give.birthday": (
        '"Happy birthday!" said {a} and gave {t} to {b}.',
        "{a} put {t} down in front of {b}. \"{t.they} {t.is} for you!\"",
        "{b} closed both eyes, and {a} gave {b} {t}.",
    ),
    "send": (
        '"Please take {t.it} to {c} {p.in}," said {a} and gave {t} to {b}.',
        '"{c} is waiting for {t.this} {p.in}," said {a}, and {b} took {t.it}.',
    ),
    "deliver": (
        '"Here you are," said {a} and gave {t} to {b}.',
        "{a} handed {t} to {b}.",
        '"For me?" asked {b} and took {t} from {a}.',
    ),
    "lend": (
        "{a} lent {t} to {b}.",
        '"Of course you can have {t.it}," said {a}, and {b} took {t}.',
        '"Please may I borrow {t}?" asked {b}. {a} nodded and gave {t.it} to {b.him}.',
    ),
    "lend.ask": (
        '"May I borrow {t}?" asked {b}, and {a} gave {t.it} to {b.him}.',
        "{b} wanted to {t.use} too, so {a} lent {b} {t}.",
        '"You can have {t} until tomorrow," said {a}, and {b} took {t.it}.',
    ),
    "carry": (
        "{a} was tired, so {b} carried {t}.",
        '"Let me carry {t}," said {b}, and {a} handed {t.it} over.',
    ),
    "pass": ("{a} passed {t} to {b}.", '"You are better at this," said {a} and gave {t} to {b}.'),
    "show": ("{a} let {b} hold {t}.", "{a} could not read, so {b} took {t}."),
    "share": (
        "{a} had enough at home and gave {t} to {b}.",
        '"We found {t.it} together, but you can have {t.it}," said {a}, and {b} took {t}.',
    ),
    "return": (
        "{a} gave {t} back to {b}.",
        '"Here you are," said {a}, and {b} got {t} back.',
        "{a} handed {t} to {b}.",
    ),
    "reward": (
        '"You may keep {t.it}," said {a}, and so {t} went to {b}.',
        "{a} thought for a moment and then gave {t} to {b} for good.",
    ),
    "swap": (
        "So they~who swapped: {a} took {u}, and {b} took {t}.",
        "{a} gave {t} to {b} and got {u} for {t.it}.",
        '"Let us swap!" said {b}. {b} took {t}, and {a} took {u}.',
    ),
    "snatch": (
        "{b} pulled {t} away from {a}.",
        '"Give me that!" said {b} and grabbed {t} from {a}.',
        "{a} was not looking, and {b} took {t}.",
    ),
    "find": (
        "{a} looked {s.in} and found {t}.",
        "And there {t.was} {t}, {s.in}! {a} picked {t.it} up.",
        '"Look!" called {a}. {t} {t.was} lying {s.in}, and {a} took {t.it}.',
        "At last {a} found {t} {s.in}.",
    ),
    "pick.up": ("{a} picked {t.it} up.", "{a} saw {t} and took {t.it}.", "{a} pulled {t} out."),
    "reach": (
        "With the help of {u}, {a} reached {t} and got {t.it} back.",
        "{a} used {u} and got hold of {t}.",
        "It took three tries with {u}, but then {a} had {t}.",
    ),
    "slip": (
        "{a} did not notice when {t} slipped from {a.his} bag and landed {s.in}.",
        "But {t} fell out of {a.s} bag and landed {s.in}, and nobody saw it.",
        "Then {t} fell to the ground {s.in}, but {a} did not see it.",
    ),
    "drop": (
        "{A} stumbled, and {t} landed {s.in}.",
        "{A} dropped {t}, and {t.they} rolled away and stopped {s.in}.",
    ),
    "leave": (
        "{a} left {t} {s.in} and waited a little longer.",
        "After a while {a} put {t} down {s.in}.",
    ),
    "stuck.tree": (
        "{a} threw {t} up for fun, and {t.they} got stuck high {s.in}.",
        "A gust of wind carried {t} away, and {t.they} got stuck {s.in}.",
    ),
    "stuck.water": (
        "{a} slipped, and {t} fell {s.in}.",
        "A gust of wind took {t} from {a}, and {t.they} landed far out {s.in}.",
    ),
    "put.dark": (
        '"I left {t.it} {s.in}," said {a}. {t} {t.was} still {s.in}.',
        '{a} had put {t} {s.in}. "Go and get {t.it}," {a.he} told {b}.',
    ),
    "map": ("Something was sticking out {s.in}. It was {t.a}.", "There {t.was} {t.a} {s.in}."),
    "hint": (
        "The map~what pointed at something {s.in}.",
        "There was a big cross on the map~what: {s.in}.",
    ),
    "cook": (
        "{A} cut up {t} and began to cook {d}.",
        "{t} went into the pot, and {a} began to make {d}.",
    ),
    "eaten.all": (
        "But {a} was hungry and ate up {t}, and there was nothing left.",
        "When {b} looked the other way, {a} ate {t} all up.",
    ),
    "spilled": (
        "But {a} tripped, and {t} fell into a deep hole.",
        "At the last corner {t} fell down into a ditch and {t.was} gone.",
    ),
}  # fmt: skip

NOTES: dict[str, tuple[str, ...]] = {
    "play": (
        "{A} took {t} at once and {t.used} for a while.",
        "Now that {a} had {t}, {a.he} did nothing but {t.use}.",
        "{A} would not let go of {t} and spent an hour {t.using}.",
    ),
    "missed": (
        '"Where {t.is} my {t.bare}?" cried {a}.',
        "There {a} opened {a.his} bag, but {t} {t.was} gone.",
        "{A} wanted to look at {t}, but the bag was empty.",
    ),
    "offer.look": (
        '"I will help you look," said {b}.',
        '"Two find more than one," said {b}.',
        "{b} heard what was wrong and wanted to help.",
    ),
    "search": ("They~who looked high and low.", "{a} and {b} began to look around."),
    "search.vain": (
        "They~who looked until the sun went down, but they~who could not find {t}.",
        "{a} and {b} looked in every corner but one, and {t} did not turn up.",
    ),
    "refuse": (
        '"{t.they} {t.is} mine now," said {b} and would not give {t.it} back.',
        "{a} asked for {t} again and again, but {b} only laughed.",
        '"You will not get {t.it} from me," said {b} and held {t} tight.',
    ),
    "thanks": (
        '"Thank you!" said {a} and hugged {b}.',
        '"How kind of you!" said {a}.',
        "{a} thanked {b} three times.",
    ),
    "broken.trip": (
        "But then {a} tripped, and {t} {t.broke}.",
        "But {a} slipped on a wet leaf, and {t} {t.broke}.",
    ),
    "broken": (
        "But a sharp edge had caught {t}, and {t.they} {t.broke}.",
        "There was an ugly sound, and {t} {t.broke}.",
    ),
    "empty.hands": (
        "{A} had nothing good left to give to {b}.",
        '"I wanted to bring you {t.a}," {a} told {b}, "but now it is too late."',
    ),
    "nobody": (
        "But nobody was there. {b} had moved away.",
        "But {b} had left that morning for the whole summer.",
        "{A} called and called, but {b} had gone away.",
    ),
    "wish": (
        "{a} looked at {u}, and {b} looked at {t}.",
        '"I wish I had {u.a}," said {a}. "And I would like {t.a}," said {b}.',
        "{b} asked if {a} would swap {t} for {u}.",
    ),
    "pleased": (
        '"I never want anything else," said {a}.',
        "{A} would not put {t} down.",
        "{t} {t.was} even better than {a} had thought.",
    ),
    "regret": (
        "But {a} soon had enough of {u} and began to miss {t}.",
        "{A} could not stop thinking of {t}.",
    ),
    "too.late": (
        '"A swap is a swap," said {b} and kept {t}.',
        "{a} asked for {t}, but {b} loved {t.it} too much.",
    ),
    "cheated": (
        "{A} took a closer look, and {t} {t.broke} at once. {b} had known it all along.",
        '{t} {t.broke} that very minute. "Bad luck," said {b} and laughed.',
    ),
    "plea": (
        '"Please help me to get {t.it} out!" said {b}.',
        '"I cannot reach {t.it}," said {b} and looked at {a}.',
    ),
    "silence": (
        "{a} looked at what was left of {t} and said nothing.",
        '"{t.they} {t.was} from my mother~who," said {a} in a low voice.',
    ),
    "no.thanks": (
        '"That took you long enough," said {a} and did not even thank {b}.',
        '"You have made {t.it} dirty!" said {a} to {b}.',
    ),
    "seek.found": (
        "{a} looked {s.in}, and there was {b}.",
        "{A} heard somebody giggle {s.in}. It was {b}!",
    ),
    "seek.all": (
        "The last one was soon found too, and {b} and {c} wanted to play again.",
        '"Once more!" cried {b} and {c}, and then it was their turn to seek.',
    ),
    "blamed": (
        '"You looked through your fingers," said {a}, but {b} had not done that.',
        "{a} told everybody that {b} had cheated, and that was a lie.",
    ),
    "missing": (
        "But there were no {t.noun} left.",
        '"I need {t.noun}," said {a}, "and there are none."',
    ),
    "tasty": (
        "{b} ate three plates of {d} and asked for more.",
        '"I have never eaten such good {d}," said {b}.',
    ),
    "burned": (
        "But it stayed on the fire too long, and all of the {d} was black.",
        "{A} looked away for a moment, and the {d} burned.",
    ),
    "gobbled": (
        "When it was ready, {a} ate all of the {d} and left nothing for {c} or {b}.",
        "{b} set the table for {c}, and while {b.he} did that {a} ate the whole {d}.",
    ),
    "fire": (
        "Suddenly flames shot up, and there was smoke everywhere.",
        "Then there was a hiss and a bang, and the pot was on fire.",
    ),
    "along": (
        '"I will come along," said {b}.',
        "{b} had time and came along.",
        '"Where are you going?" asked {b}. "May I come too?"',
    ),
    "need": ('"We need {t.a}," said {a}.', "But they~who needed {t.a} first, and {a} had an idea."),
    "build": (
        "{a} and {b} worked all day on the {d}.",
        "{a} and {b} worked hard, and the {d} grew and grew.",
    ),
    "built": (
        "When the {d} was done, it was just as they~who had wanted it.",
        "By evening the {d} stood straight, and everyone came to see what {a} and {b} had made.",
    ),
    "built.inside": (
        "When the {d} was done, {a} and {b} sat down beside it.",
        "It was late when the {d} was done.",
    ),
    "collapse": (
        "But then a strong wind came, and the {d} fell down.",
        "In the night the rain washed the whole {d} away.",
    ),
    "kicked": (
        "Then {a} kicked the {d} for fun, and all of it fell down.",
        'When it was done, {a} told everybody: "I made the {d} alone. {b} only watched."',
    ),
    "told": (
        '"I do not have {t.it} any more," said {a}. "Ask {c}!"',
        "{a} said that {c} had {t} now.",
    ),
    "confess": (
        '"I am sorry," said {a}. "{t} {t.broke} this morning."',
        "{a} showed what was left of {t}. {t.they} {t.broke} when {a.he} fell.",
    ),
    "nothing": (
        "They~who dug and looked {s.in}, but there was nothing at all.",
        "There was only an empty hole {s.in}. Someone had been faster.",
    ),
}  # fmt: skip

SENTENCES = {**BEGINNINGS, **MOVES, **TRANSFERS, **NOTES, **FEELINGS}
