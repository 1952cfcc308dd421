"""The page on rules names everything that a rule may be made of."""

from __future__ import annotations

import re
from typing import Final

from market_data_pipeline.features.definitions import BUILT_IN
from market_data_pipeline.inference.kleene import ARITHMETIC, COMPARISONS, FUNCTIONS
from market_data_pipeline.inference.rule import RuleSection
from market_data_pipeline.inference.templates import TEXTS
from market_data_pipeline.inference.tokens import WORDS
from tests.docs.pages import ROOT

PAGE: Final = (ROOT / "docs" / "rules.md").read_text("utf-8")


def test_every_key_feature_function_sign_and_field_is_on_the_page() -> None:
    code = set(re.findall(r"`([^`\n]+)`", PAGE))
    words = {word for text in code for word in re.findall(r"\w+", text)}
    assert {*RuleSection.model_fields, *BUILT_IN, *FUNCTIONS, *WORDS, *TEXTS} <= words
    assert {*ARITHMETIC, *COMPARISONS} <= code
