"""Numbers as they are written: a table by mathematics, what has two readings, where the last one of
a text stands, and which answers are right."""

from __future__ import annotations

from fractions import Fraction as F
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plinth.reward.verifiers import Answer, parse_rule
from plinth.reward.verifiers.numbers import last_number, number

# (how it is written, its value, its unit)
READ: list[tuple[str, Any, str]] = [
    # signs
    ("72", 72, ""),
    ("-5", -5, ""),
    ("\u22125", -5, ""),  # a minus sign
    ("\u20135", -5, ""),  # a dash in front
    ("+5", 5, ""),
    ("- 5", -5, ""),
    # decimals, and the end of a sentence
    (".5", F(1, 2), ""),
    ("5.", 5, ""),
    ("0.10", F(1, 10), ""),
    # groups of digits
    ("1,234", 1234, ""),
    ("1,234,567.89", F("1234567.89"), ""),
    ("12,34,567", 1_234_567, ""),  # India
    ("1.234,56", F("1234.56"), ""),  # a comma that can only be decimal
    ("1.234.567", 1_234_567, ""),
    ("1 000 000", 10**6, ""),  # ISO 80000-1
    ("100 000.5", F("100000.5"), ""),
    ("100 000 km", 10**5, "km"),
    ("$10 000 000", 10**7, "dollar"),
    (r"\frac{1}{100 000}", F(1, 10**5), ""),
    ("5 123/456", 5 + F(123, 456), ""),
    ("1\u202f234,5", F("1234.5"), ""),
    ("1'000'000", 10**6, ""),
    ("1{,}000", 1000, ""),  # LaTeX
    (r"1\,000", 1000, ""),
    # fractions and mixed numbers
    ("3/4", F(3, 4), ""),
    ("-3/4", F(-3, 4), ""),
    ("3/-4", F(-3, 4), ""),
    ("6/8", F(3, 4), ""),
    ("3 / 4", F(3, 4), ""),
    ("0.5/2", F(1, 4), ""),
    ("1 1/2", F(3, 2), ""),
    ("-1 1/2", F(-3, 2), ""),
    ("½", F(1, 2), ""),
    ("3½", F(7, 2), ""),
    ("3\u20444", F(3, 4), ""),
    (r"\frac{3}{4}", F(3, 4), ""),
    (r"\dfrac34", F(3, 4), ""),
    (r"-\tfrac{3}{4}", F(-3, 4), ""),
    (r"\frac{-3}{4}", F(-3, 4), ""),
    (r"\frac{\frac12}{3}", F(1, 6), ""),
    (r"1\frac{1}{2}", F(3, 2), ""),
    (r"\left\frac{1}{2}\right", F(1, 2), ""),
    (r"0.\overline{3}", F(1, 3), ""),
    (r"1.2\overline{34}", F(611, 495), ""),
    # powers of ten
    ("1.2e3", 1200, ""),
    ("5E-1", F(1, 2), ""),
    (r"1.2 \times 10^{3}", 1200, ""),
    (r"-2 \cdot 10^4", -20_000, ""),
    ("1.2×10⁻³", F("0.0012"), ""),
    ("3*10^2", 300, ""),
    ("10^6", 10**6, ""),
    ("3 million", 3 * 10**6, ""),
    ("2 dozen", 24, ""),
    # percents, money, units
    ("50%", 50, "%"),
    (r"50\%", 50, "%"),
    ("12.5 percent", F(25, 2), "%"),
    ("$5", 5, "dollar"),
    ("-$5", -5, "dollar"),
    ("$-5", -5, "dollar"),
    (r"\$5.50", F("5.5"), "dollar"),
    ("5 dollars", 5, "dollar"),
    ("$1.5 billion", 1_500_000_000, "dollar"),
    ("$5 per hour", 5, "dollar/hour"),
    ("€3,50", F("3.5"), "euro"),  # with a currency it is no list
    ("3,50 €", F("3.5"), "euro"),
    ("5 cm", 5, "cm"),
    ("5cm", 5, "cm"),
    ("5 feet", 5, "foot"),
    ("60 km/h", 60, "km/hour"),
    ("5 miles per hour", 5, "mile/hour"),
    ("12 m^2", 12, "m2"),
    ("12 m²", 12, "m2"),
    ("12 square meters", 12, "m2"),
    (r"5 \text{ cm}", 5, "cm"),
    (r"5\text{ apples}", 5, "apple"),
    (r"3 \mathrm{cm}^3", 3, "cm3"),
    (r"90^\circ", 90, "degree"),
    (r"90^{\circ}", 90, "degree"),
    ("90°", 90, "degree"),
    ("90 degrees", 90, "degree"),
    # dressing
    ("$5$", 5, ""),
    (r"$\frac{1}{2}$.", F(1, 2), ""),
    (r"\(5\)", 5, ""),
    ("$$5$$", 5, ""),
    (r"\boxed{5}", 5, ""),
    (r"\text{5 cm}", 5, "cm"),
    ("**5**", 5, ""),
    ("x = 5", 5, ""),
    ("$x=5$", 5, ""),
]

# What is no number, or may be two things.
REFUSED = [
    *("", "five", "no", "-", ".", "$", "%", "1/0", r"\frac{1}{0}", "1 1/0", "nan", "inf", "∞"),
    *("3,5", "0,5", "12,34", "1,2345", "1,000,00", "1,2,3", "3.14.15"),  # decimal comma or list
    *("1-1/2", "2 3/2", "3/4/5", "1/2/2024", "2024-01-05", "10:30", "3:4", "5 or 6", "5 6", "3-4"),
    *("2x", "2^10", r"2\sqrt{3}", r"2\pi", "2π", r"\frac{\pi}{2}", r"\frac{x}{2}", "5!", "x > 5"),
    *("±5", r"\pm 5", "--5", "20k", "5th", "3D", "5 apples", "(5)", "3.333...", "0x10", "1_000"),
    *("5 is wrong", "5%%", "$$", "5$6", "$5 cents", "1e9999", "9" * 10_000, "1e999999999"),
]

# (a text, what its last number is)
LAST = [
    ("It is 3/4.", "3/4"),
    ("So the answer is 1/2", "1/2"),
    ("Each gets 1 1/2 cups", "1 1/2"),
    (r"Thus $\frac{3}{4}$.", r"\frac{3}{4}"),
    (r"\boxed{5 \text{ cm}}", r"5 \text{ cm}"),
    ("That makes $1,234.50.", "$1,234.50"),
    ("12 / 4 = 3", "3"),
    ("10 - 3 is 7; 5 - 3", "3"),
    ("it fell to -5", "-5"),
    ("(-3)", "-3"),
    ("pages 10-15", "15"),
    ("pages 10\u201315", "15"),
    ("a-3", "3"),
    ("3 million people", "3 million"),
    (r"1.2 \times 10^{3} m", r"1.2 \times 10^{3} m"),
    ("It is 50%!", "50%"),
    ("It is 5!", "5"),
    ("It is 5...", "5"),
    ("**7**", "7"),
    ("costs $5 and $6", "$6"),
    ("- 5 apples", "5"),  # a bullet
    # groups by spaces are one number
    ("The answer is 100 000", "100 000"),
    ("It fell to -100 000.", "-100 000"),
    ("100 000 people came", "100 000"),
    ("It is 100 000...", "100 000"),
    ("It cost 10 000 000 $.", "10 000 000 $"),
    ("in 2020 500 came", "500"),
    ("12\n345", "345"),
    # not within words, names and indices; no ordinals
    ("There are 3 atoms in H2O", "3"),
    ("x^2 = 9", "9"),
    ("x_1 is 4, as is x_2", "4"),
    ("She has 12 on the 5th day", "12"),
    # what is no number is still where the answer stands
    ("3 then 2x", "2x"),
    (r"3 then 2\sqrt{3}", r"2\sqrt{3}"),
    (r"3 then \sqrt{2}", r"\sqrt{2}"),
    ("3 then 1,2,3", "1,2,3"),
    ("3 at 10:30", "10:30"),
    ("3 on 1/2/2024", "1/2/2024"),
    ("3 on 2024-01-05", "2024-01-05"),
    ("it is 3.333...", "3.333..."),
    ("It is 100 000/2", "100 000/2"),
    ("It is 100 200 300,5", "100 200 300,5"),
    ("no number", None),
    ("", None),
]

EXACT = {"kind": "exact_answer", "extract": "last_number"}
BOXED = {"kind": "exact_answer", "extract": "boxed"}
WHOLE = {"kind": "exact_answer"}
NEAR = {"kind": "number", "absolute": 0.01}
# (rule, what was answered, the reference, whether it is right by mathematics)
RIGHT = [
    (EXACT, "The answer is 3/4.", "1/4", 0),
    (EXACT, "The answer is 100 000", "100,000", 1),
    (EXACT, "The answer is 100 000", "0", 0),
    (EXACT, "The answer is 1/4.", "1/4", 1),
    (EXACT, "The answer is 2.", "1/2", 0),
    (EXACT, "The answer is 1/2.", "2", 0),
    (EXACT, "The answer is 0.5.", "1/2", 1),
    (EXACT, "So 3 million.", "3", 0),
    (EXACT, "So 3 million.", "3,000,000", 1),
    (EXACT, "5 - 72", "-72", 0),
    (EXACT, "Janet makes $18 a day", "... #### 18", 1),
    (EXACT, "That's 2x", "2", 0),
    (EXACT, "It's 1,000", "1000", 1),
    (EXACT, "It's 1,000", "1", 0),
    (EXACT, "It is 50%", "50", 1),
    (EXACT, "It is 50%", "0.5", 1),
    (EXACT, "It is 50%", "5", 0),
    (EXACT, "It is 50%", "0.5%", 0),
    (EXACT, "It is 5 cm", "5", 1),
    (EXACT, "It is 5 cm", "5 m", 0),
    (EXACT, "It is 5 feet", "5 ft", 1),
    (EXACT, "18 cents", "$18", 0),
    (EXACT, "$18 per day", "$18", 1),
    (BOXED, r"\boxed{\frac{1}{2}}", r"\boxed{0.5}", 1),
    (BOXED, r"\boxed{\dfrac{2}{4}}", r"\boxed{\frac12}", 1),
    (BOXED, r"\boxed{90^\circ}", r"\boxed{90}", 1),
    (BOXED, r"\boxed{1\frac{1}{2}}", r"\boxed{1.5}", 1),
    (BOXED, r"\boxed{5\text{ cm}}", r"\boxed{5}", 1),
    (BOXED, r"\boxed{2\sqrt{3}}", r"\boxed{2\sqrt{3}}", 1),
    (BOXED, r"\boxed{2\sqrt{3}}", r"\boxed{3}", 0),
    (BOXED, r"\boxed{1.2 \times 10^3}", r"\boxed{1200}", 1),
    (WHOLE, "3,5", "3.5", 0),
    (WHOLE, "3,5", "3,5", 1),
    (NEAR, "about 3.1416", "3.14", 1),
    (NEAR, "about 1/3", "0.333", 1),
    (NEAR, "about 4/3", "1/3", 0),
    (NEAR, "33.3%", "0.333", 1),
]


@pytest.mark.parametrize(("text", "value", "unit"), READ)
def test_what_is_written_is_read(text: str, value: Any, unit: str) -> None:
    found = number(text)
    assert found is not None
    assert (found.value, found.unit) == (value, unit)


@pytest.mark.parametrize("text", REFUSED)
def test_what_may_be_two_things_is_none(text: str) -> None:
    assert number(text) is None


@pytest.mark.parametrize(("text", "last"), LAST)
def test_the_last_number_is_all_of_it(text: str, last: str | None) -> None:
    assert last_number(text) == last


@pytest.mark.parametrize(("rule", "said", "reference", "right"), RIGHT)
async def test_what_is_right_by_mathematics_is_right(
    rule: dict[str, Any], said: str, reference: str, right: int
) -> None:
    verdict = await parse_rule(rule, "r").judge(Answer(said, reference=reference), None)  # type: ignore[arg-type]
    assert verdict.value == right, verdict.reason


def written(value: F) -> st.SearchStrategy[str]:
    """Ways of writing a number, by nothing that reads one."""
    top, bottom = value.numerator, value.denominator
    sign, size = ("-", -top) if top < 0 else ("", top)
    ways = [
        f"{top}/{bottom}",
        rf"{sign}\frac{{{size}}}{{{bottom}}}",
        rf"$\dfrac{{{top}}}{{{bottom}}}$",
        f"{sign}{size:,}/{bottom}",
    ]
    whole, rest = divmod(size, bottom)
    if whole and rest:
        ways += [f"{sign}{whole} {rest}/{bottom}", rf"{sign}{whole}\frac{{{rest}}}{{{bottom}}}"]
    if bottom == 1:
        ways += [f"{top}", f"{top:,}", f"{top}.0", f"{sign}${size:,}", rf"\boxed{{{top}}}"]
    if 10**6 % bottom == 0:
        ways.append(f"{sign}{size / bottom:.6f}")
        ways.append(rf"{sign}{size * 10**6 // bottom} \times 10^{{-6}}")
    return st.sampled_from(ways)


VALUES = st.fractions(min_value=-(10**6), max_value=10**6, max_denominator=1000)


@given(st.data(), VALUES)
def test_a_number_is_the_same_however_it_is_written(data: st.DataObject, value: F) -> None:
    text = data.draw(written(value))
    found = number(text)
    assert found is not None
    assert found.value == value
    sentence = f"First 12, then 7/8. Therefore the answer is {text}."
    last = last_number(sentence)
    assert last is not None
    again = number(last)
    assert again is not None
    assert again.value == value


@given(st.data(), VALUES, VALUES)
def test_only_equal_numbers_are_equal(data: st.DataObject, one: F, other: F) -> None:
    said, right = number(data.draw(written(one))), number(data.draw(written(other)))
    assert said is not None
    assert right is not None
    assert said.equals(right) is (one == other)


@given(st.text(st.sampled_from("0123456789.,/ -+$%^{}\\fracx10eE½ \n:'*()"), max_size=60))
def test_any_text_is_a_number_or_none(text: str) -> None:
    number(text)
    last = last_number(text)
    if last is not None:
        number(last)


LONG = "9" * 5000


@pytest.mark.parametrize(
    "form",
    [
        *(
            "{}",
            "-{}",
            "{}...",
            "{}\u2026",
            "{}/3",
            "3/{}",
            "1 1/{}",
            "1 {}/3",
            "{}.5",
            "0.{}",
            ".{}",
        ),
        *("{},50 €", "€{},50", "€{}", "{} €", "{}%", "{}e3", "1e{}", "10^{}", "3 × 10^{{{}}}"),
        *(r"0.{}\overline{{3}}", r"0.\overline{{{}}}", r"{}.\overline{{3}}", r"\frac{{1}}{{{}}}"),
        *(
            r"\frac{{{}}}{{2}}",
            r"1\frac{{{}}}{{2}}",
            r"\boxed{{{}}}",
            "{} million",
            "1 000 {}",
            "½{}",
        ),
        *("1" + ",000" * 2000 + "{}", "1" + " 000" * 2000, "1" + ".000" * 2000 + ",5"),
    ],
)
def test_more_digits_than_a_number_has_are_none(form: str) -> None:
    """Python refuses to make an integer of more than 4,300 digits."""
    text = form.format(LONG)
    assert number(text) is None
    last = last_number(f"First 12. It is {text}")
    assert last is not None
    assert len(last) > 400 or "½" in form
    assert number(last) is None


@pytest.mark.parametrize("text", [r"\frac²3", r"\frac3²", r"1\frac{²}{3}", "²", "①", r"\frac①2"])
def test_what_unicode_calls_a_digit_and_is_none_is_no_number(text: str) -> None:
    assert number(text) is None
    last_number(f"It is {text}")


HOSTILE = st.sampled_from(
    [
        *"0123456789.,/ -+$€%^{}eE½²①٣\n:'*()\u2026\u00a0",
        *(LONG, "...", " 000", "10^", "1 1/", " million", " cm"),
        *(r"\frac", r"\overline", r"\boxed", r"\text"),
    ]
)


@given(st.lists(HOSTILE, max_size=30).map("".join))
def test_hostile_text_is_a_number_or_none(text: str) -> None:
    number(text)
    last = last_number(text)
    if last is not None:
        number(last)


@pytest.mark.parametrize(
    "part", ["1 ", "1,", "1.", "9", "1/", "$", "1" + " " * 1000, "\\frac{", "1\\text{", "- ", "½"]
)
def test_a_long_text_takes_no_longer_by_its_square(part: str) -> None:
    """At the square of its length a quarter of a million characters would take minutes."""
    text = part * (250_000 // len(part))
    last_number(text)
    number(text)
