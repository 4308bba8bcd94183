"""Prompts as CLIP is given them: without the WebUI's syntax, in parts that fit, and by what they speak of."""

from __future__ import annotations

import pytest

from sgool.guidance.prompt import clean_prompt, phrases, split_prompt


@pytest.mark.parametrize(
    ("prompt", "plain"),
    [
        ("a (red:1.3) ((big)) [small] car", "a red big small car"),
        ("(((nested (word:1.2) here)):0.8), end", "nested word here, end"),
        (r"face \(smiling\), \[x\]", "face (smiling), [x]"),
        (r"back\\slash", r"back\slash"),
        ("a dog <lora:fluffy:0.8>, <hypernet:ink:1> park", "a dog, park"),
        ("a cat AND a dog:1.2", "a cat, a dog"),
        ("a cat :1.2 AND a dog AND fish:.5", "a cat, a dog, fish"),
        ("sky\nBREAK\nsea", "sky, sea"),
        ("ANDROID BREAKFAST", "ANDROID BREAKFAST"),
        ("a [cat:dog:0.5] runs", "a dog runs"),
        ("a [hat:10] man", "a hat man"),
        ("a [beard::0.5] man", "a man"),
        ("[a (red:1.1) fox:[blue|green] bird:5]", "blue green bird"),
        ("[cow|horse] in a field", "cow horse in a field"),
        ("clock at 12:30 sharp, ratio (16:9 wide)", "clock at 12:30 sharp, ratio 16:9 wide"),
        ("odd (bracket, ,, and  ] space ,", "odd bracket, and space"),
        ("", ""),
    ],
)
def test_prompt_syntax_is_resolved(prompt: str, plain: str) -> None:
    assert clean_prompt(prompt) == plain


def test_long_prompts_break_at_commas_then_words_then_characters() -> None:
    def words(text: str) -> int:
        return len(text.replace(",", " ").split())

    assert split_prompt("a b c", words, 3) == ["a b c"]
    assert split_prompt("a b, c d, e", words, 3) == ["a b", "c d, e"]
    assert split_prompt("a b c d e, f", words, 3) == ["a b c", "d e, f"]
    assert split_prompt("abcdefgh", len, 3) == ["abc", "def", "gh"]
    assert split_prompt("", words, 3) == [""]
    assert split_prompt("ab, c", lambda text: 5 * len(text), 3) == ["a", "b", "c"]  # each is too long by itself
    text = ", ".join(" ".join(f"w{i * j}" for j in range(i)) for i in range(30))
    parts = split_prompt(text, words, 7)
    assert max(map(words, parts)) <= 7
    assert " ".join(parts).replace(",", "").split() == text.replace(",", "").split()


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a small panda and a pizza on a busy blue background", ["a small panda", "a pizza on a busy blue background"]),
        ("a sandy island, palms; sea.", ["a sandy island", "palms", "sea"]),
        ("version 1.5 of a car, car, a car", ["version 1.5 of a car", "car", "a car"]),
        ("", []),
    ],
)
def test_phrases(prompt: str, expected: list[str]) -> None:
    assert phrases(prompt) == expected
