import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from scipy import stats

from orchestrator.sweep.space import (
    DOMAIN_WORDS,
    DOMAINS,
    Choice,
    Domain,
    IntRange,
    Listed,
    LogUniform,
    Ordinal,
    Uniform,
)

EXAMPLES = [
    Choice(choice=("a", "b", "c")),
    Ordinal(ordinal=(16, 32, 64)),
    Uniform(uniform=(-2.0, 5.0)),
    Uniform(uniform=(3.0, 3.0)),
    LogUniform(log_uniform=(2.5e-4, 8e-3)),
    LogUniform(log_uniform=(1e-100, 1e100)),
    IntRange(int_range=(-1, 3)),
    IntRange(int_range=(7, 7)),
]


def test_the_examples_cover_every_domain():
    assert {type(example) for example in EXAMPLES} == set(DOMAINS)
    assert DOMAIN_WORDS == ("choice", "ordinal", "uniform", "log_uniform", "int_range")


@pytest.mark.parametrize("domain", EXAMPLES, ids=str)
@given(quantile=st.floats(0, 1))
def test_every_value_lies_inside_and_order_is_kept(domain, quantile):
    value = domain.at(quantile)
    if isinstance(domain, Listed):
        assert value in domain.values
    else:
        low, high = domain.ends
        assert low <= value <= high
        assert domain.at(0) <= value <= domain.at(1)


@pytest.mark.parametrize("domain", EXAMPLES, ids=str)
def test_both_ends_can_be_reached(domain):
    low, *_, high = (*domain.extremes(), domain.extremes()[-1])
    assert domain.at(0.0) == low
    assert domain.at(1.0) == (high if isinstance(high, str) else pytest.approx(high, rel=1e-12))


@given(st.tuples(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6)).map(sorted))
def test_rounding_never_leaves_an_interval(ends):
    assert Uniform(uniform=ends).at(1.0) <= ends[1]


@pytest.mark.parametrize("domain", EXAMPLES, ids=str)
def test_a_domain_is_read_from_its_word_and_survives_json(domain):
    assert TypeAdapter(Domain).validate_python(domain.model_dump(mode="json")) == domain


def test_log_uniform_is_uniform_in_the_logarithm():
    domain = LogUniform(log_uniform=(1e-4, 1e-1))
    quantiles = np.random.default_rng(0).random(4000)
    logs = [(math.log10(domain.at(u)) + 4) / 3 for u in quantiles]
    # Of true uniforms one in a million samples fails this.
    assert stats.kstest(logs, "uniform").pvalue > 1e-6
    # By hand: half way between 1e-4 and 1e-1 in the logarithm is 10^-2.5.
    assert domain.at(0.5) == pytest.approx(10**-2.5)


def test_int_range_draws_every_number_equally_often():
    domain = IntRange(int_range=(2, 6))
    # 1000 quantiles evenly spaced, so 200 for each of the five numbers.
    drawn = [domain.at((i + 0.5) / 1000) for i in range(1000)]
    assert {number: drawn.count(number) for number in drawn} == dict.fromkeys(range(2, 7), 200)
    assert all(type(number) is int for number in drawn)
    assert domain.num_levels == 5


def test_choice_draws_every_value_equally_often():
    domain = Choice(choice=("x", None, 3))
    drawn = [domain.at((i + 0.5) / 900) for i in range(900)]
    assert [drawn.count(value) for value in domain.choice] == [300, 300, 300]
    assert domain.num_levels == 3


@pytest.mark.parametrize(
    ("domain", "words"),
    [
        ({"uniform": [2, 1]}, "low <= high must hold, got 2.0 and 1.0"),
        ({"log_uniform": [0, 1]}, "must be above 0, got [0.0, 1.0]"),
        ({"log_uniform": [1, 0.1]}, "low <= high must hold, got 1.0 and 0.1"),
        ({"int_range": [3, 2]}, "low <= high must hold, got 3 and 2"),
        ({"int_range": [1.5, 3]}, "valid integer"),
        ({"uniform": [0, "x"]}, "valid number"),
        ({"uniform": [0, float("inf")]}, "finite"),
        ({"uniform": [0]}, "required"),
        ({"choice": []}, "at least 1 item"),
        ({"choise": [1]}, "a domain is one of {choice, ordinal, uniform, log_uniform, int_range}"),
        ({"uniform": [0, 1], "choice": [1]}, "not permitted"),
        (3, "a domain is one of"),
    ],
    ids=str,
)
def test_a_bad_domain_is_refused_with_the_rule_and_the_value(domain, words):
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(Domain).validate_python(domain)
    assert words in str(caught.value)
    assert caught.value.error_count() == 1
