"""The sentences that carry a feeling, and the last sentences of the stories.

Words such as "afraid" or "laughed" pass by in stories of every mood; what tells the mood is
what has happened and how the hero takes it. See ``stories_phrases.py``.
"""

from __future__ import annotations

FEELINGS: dict[str, tuple[str, ...]] = {
    "beat.scare": (
        "Something rustled nearby and {a} froze, but it was only the wind.",
        "A shadow moved and {a} shook, but it was only a cat~who.",
        "There was a loud bang. {A} was afraid for a moment, but it was only a door.",
    ),
    "beat.hurt": (
        "{A} fell and hurt {a.his} knee and cried a little, but it soon got better.",
        "A bee stung {a} on the nose, and a tear ran down, but not for long.",
    ),
    "beat.joy": (
        "{A} laughed and sang a song.",
        "The sun came out, and {a} was happy and smiled at everyone.",
    ),
    "beat.gloom": (
        "{A} was sad for a moment because the summer was nearly over.",
        "Some rain fell, and {a} walked on with wet feet and a long face.",
    ),
    "beat.scene": (
        "The air smelled of hay.",
        "A bird was singing somewhere.",
        "Far away a bell~what rang.",
        "Two snails were having a race.",
        "High up the clouds drifted by.",
        "It was very quiet.",
    ),
    "beat.quarrel": (
        "{a} and {b} shouted at each other about the way, but they~who soon made up.",
        "{b} pushed {a}, who was cross until {b} said sorry.",
    ),
    "beat.laugh": (
        "{b} told a joke, and {a} laughed out loud.",
        "{a} and {b} danced and sang for a while.",
    ),
    "threat.out": (
        "Suddenly the sky turned black, and thunder rolled over {p}.",
        "Then there was a deep growl, and it came closer.",
        "All at once it grew dark, and two yellow eyes were shining in the night.",
        "A thick fog came down, and {a} could not see the way any more.",
    ),
    "threat.in": (
        "Suddenly it was dark, and something scratched at the wall.",
        "Then the door fell shut, and steps came closer and closer.",
        "Thunder shook the roof, and the wind howled like a wolf~who.",
    ),
    "high.tree": (
        "{A} climbed up, but a branch broke, and {a} hung high above the ground.",
        "Halfway up {a} looked down. The ground was far away, and the tree~where began to sway.",
    ),
    "high.water": (
        "{A} leaned out too far. The water~where was deep and black and pulled at {a.s} legs.",
        "A big wave came, and it nearly carried {a} away.",
    ),
    "hide.dark": (
        "It was dark {s.in}, and something with many legs ran over {a.s} neck.",
        "Then something cold touched {a} {s.in}, and it was breathing.",
    ),
    "dare.dark": (
        "{A} looked in and saw nothing but black. Something moved in there.",
        "{A} took one step in. A hundred bats~who flew up and screamed.",
    ),
    "feel.happy": (
        "{A} smiled from ear to ear.",
        "{A} danced around and around.",
        '"What a day!" laughed {a}.',
        "{a.s} eyes were shining.",
        "{A} jumped for joy.",
        "{A} began to sing.",
    ),
    "feel.sad": (
        "{A} sat down and cried.",
        "A tear rolled down {a.s} nose.",
        "{A} did not say a word any more.",
        "{a.s} eyes were wet.",
        '"What a day," said {a} in a small voice.',
        "{A} looked at the ground for a long time.",
    ),
    "feel.scared": (
        "{a.s} heart was beating fast.",
        "{A} shook all over and did not dare to move.",
        '"Help!" cried {a}.',
        "{a.s} eyes grew big and round.",
        '"What was that?" whispered {a}.',
        "{A} held {a.his} breath and did not make a sound.",
    ),
    "feel.angry": (
        "{A} stamped {a.his} foot.",
        '"That is not fair!" shouted {a}.',
        "{A} turned red and did not say a word.",
        "{a.s} eyes grew narrow.",
        '"What a friend!" cried {a}.',
        "{A} kicked at the ground.",
    ),
    "feel.angry.at": (
        "{A} would not look at {b} any more.",
        '"I will never play with you again!" {a} shouted at {b}.',
        "{A} turned {a.his} back on {b}.",
    ),
    "home.happy": (
        "{A} sang all the way {p.to}.",
        "{A} went {p.to} and told everyone about it, twice.",
        "{A} skipped {p.to}.",
    ),
    "home.sad": (
        "{A} went {p.to} slowly and did not want any supper.",
        "{A} walked {p.to} with {a.his} head down.",
        "{A} went {p.to} and lay awake for a long time.",
    ),
    "home.scared": (
        "{A} ran {p.to} as fast as {a.he} could.",
        "{A} ran {p.to} and pulled the blanket over {a.his} head.",
        "{A} went {p.to} and lay awake with the light on.",
    ),
    "home.angry": (
        "{A} stormed {p.to} and slammed the door.",
        "{A} went {p.to} without saying goodbye.",
        "{A} ran {p.to} and threw a shoe at the wall.",
    ),
}  # fmt: skip

# Last sentences, which state one fact. Their words fit any mood.
ENDINGS: dict[str, tuple[str, ...]] = {
    "holder": (
        "In the end it was {a} who had {t}.",
        "That night {t} {t.was} with {a}.",
        "When the moon came up, {a} still had {t}.",
        "So at bedtime {a} had {t}.",
        "And who had {t} at the end of the day? It was {a}.",
    ),
    "spot": (
        "That night {t} {t.was} still {s.in}.",
        "In the end {t} stayed {s.in}.",
        "When the moon came up, {t} {t.was} still {s.in}.",
        "And where {t.was} {t} at the end of the day? Still {s.in}.",
    ),
    "place": (
        "That night {a} was {p.in}.",
        "In the end {a} was {p.in}.",
        "When the moon came up, {a} was {p.in}.",
        "And so the day ended for {a} {p.in}.",
    ),
}
