"""The sentences of the quantities corpus: frames for clauses, and what joins and introduces them.

A frame stores its German clause in four fields, so that one line gives all three German word orders:

    main          sie hat | drei Äpfel gekauft            verb second
    inverted      gestern hat sie | drei Äpfel gekauft    verb second, after an opener
    subordinate   ..., dass sie | drei Äpfel gekauft hat  verb last
"""

import dataclasses
import re

_SLOT = re.compile(r"\{([a-z@]+\+?)\}")


@dataclasses.dataclass(frozen=True)
class Frame:
    """One clause. `slots` are the kinds of its quantities, in English order; a last one with "+" takes a list."""

    text: str  # English, with {} for a slot
    slots: tuple[str, ...]
    subject: str
    verb: str  # the finite verb
    middle: str  # with {0}, {1} for the slots
    end: str  # participle or infinitive, may be empty

    @classmethod
    def parse(cls, line: str) -> "Frame":
        """From a line "English | subject | verb | middle | end"; the English names the kinds in its slots."""
        english, subject, verb, middle, end = (field.strip() for field in line.split("|"))
        return cls(_SLOT.sub("{}", english), tuple(_SLOT.findall(english)), subject, verb, middle, end)

    def takes(self, count: int) -> bool:
        """Whether the clause can hold exactly `count` quantities."""
        return count == len(self.slots) or (count > len(self.slots) and self.slots[-1].endswith("+"))

    def english(self, slots: list[str]) -> str:
        return self.text.format(*slots)

    def main(self, slots: list[str]) -> str:
        return self._german(slots, self.subject, self.verb, self.middle, self.end)

    def inverted(self, slots: list[str]) -> str:
        return self._german(slots, self.verb, self.subject, self.middle, self.end)

    def subordinate(self, slots: list[str]) -> str:
        return self._german(slots, self.subject, self.middle, self.end, self.verb)

    @staticmethod
    def _german(slots: list[str], *fields: str) -> str:
        return " ".join(field for field in fields if field).format(*slots)


# English | German subject | finite verb | middle | end. All quantities are in the accusative, dates in the dative.
_LINES = """
she bought {goods+} | sie | hat | {0} | gekauft
the school has ordered {goods+} | die Schule | hat | {0} | bestellt
he still has to pack {goods+} | er | muss | noch {0} | einpacken
the cook mixed {food+} in a large bowl | der Koch | hat | {0} in einer großen Schüssel | verrührt
the recipe calls for {food+} | das Rezept | verlangt | {0} |
the company transferred {money+} to the bank | die Firma | hat | {0} an die Bank | überwiesen
he lost {money@city+} | er | hat | {0} | verloren
they walked {distance@day+} | sie | sind | {0} | gelaufen
he paid {money} for {goods+} | er | hat | {0} für {1} | bezahlt
he had to wait {time} for the bus | er | musste | {0} auf den Bus | warten
the doctor worked {time@month+} | der Arzt | hat | {0} | gearbeitet
the train needs {time} for {distance} | der Zug | braucht | {0} für {1} |
the party received {percent@city+} | die Partei | hat | {0} | erhalten
the parcels for Japan weigh {mass+} | die Pakete für Japan | wiegen | {0} |
the truck carried {weight@day+} | der Lastwagen | hat | {0} | befördert
the teacher wrote {number+} on the board | die Lehrerin | hat | {0} an die Tafel | geschrieben
he tore {page+} out of the book | er | hat | {0} aus dem Buch | gerissen
the guests have reserved {seat+} | die Gäste | haben | {0} | reserviert
nobody has read {chapter+} | niemand | hat | {0} | gelesen
we met in the park {date+} | wir | haben | uns {0} im Park | getroffen
the office will be closed {date+} | das Büro | wird | {0} geschlossen | sein
she wrote to the judge {date+} | sie | hat | {0} an den Richter | geschrieben
"""
FRAMES: tuple[Frame, ...] = tuple(Frame.parse(line) for line in _LINES.strip().splitlines())

# Before a main clause, whose German verb then comes before its subject.
OPENERS = (
    ("fortunately", "zum Glück"),
    ("unfortunately", "leider"),
    ("according to the report", "laut Bericht"),
    ("apparently", "anscheinend"),
)
# Before "that": in German the verb goes to the end.
REPORTS = (
    ("the newspaper reports", "die Zeitung berichtet"),
    ("everyone knows", "jeder weiß"),
    ("nobody believes", "niemand glaubt"),
    ("it is true", "es stimmt"),
)
# Between two clauses: English, German, and which German clause it makes a subordinate one ("none", "first", "second").
CONTRASTS = (
    ("and", "und", "none"),
    ("but", "aber", "none"),
    ("while", "während", "first"),
    ("although", "obwohl", "first"),
    ("whereas", "wohingegen", "second"),
)
