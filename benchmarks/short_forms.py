"""Which tests are the short form of which rows of the table of reliability.py.

A pattern of rows' names (`*`) to a test; a row has exactly one pattern. `make test` has them but for those of
the patterns in `SLOW`, which `make slow` has: others take the same ways.
"""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path

FAULTS, PROCESSES = "tests/benchmarks/test_faults.py::test_", "tests/cli/test_processes.py::test_"
HOSTILE, PLACES = "tests/cli/test_hostile.py::test_", "tests/cli/test_places.py::test_"
PREPARING, DATASET = "tests/data/test_preparing.py::test_", "tests/data/test_dataset.py::test_"
OOM = "tests/training/test_oom.py::test_"
ONE = f"{FAULTS}one_process_goes_on_exactly"
TWO = f"{FAULTS}two_processes_go_on_exactly_or_end_as_documented"
RANKS = "tests/training/test_ranks.py::test_"
ALIKE = f"{RANKS}two_processes_make_the_updates_of_one_and_end_when_one_is_killed"
FOUR = f"{RANKS}four_processes_make_the_updates_of_one_and_end_when_one_is_killed"
READ = f"{HOSTILE}nothing_that_is_read_runs_climbs_out_or_is_waited_for"

SHORT = {
    # runs
    "the disk full at a random point of the run": ONE,
    "the run directory read-only": ONE,
    "checkpoints made unwritable in the middle of the run": ONE,
    "SIGKILL at a random moment of the run": ONE,
    "SIGKILL while a save is under way": ONE,
    "SIGKILL again and again until the run is done": ONE,
    "SIGTERM at a random moment of the run": ONE,
    "a file of the run directory damaged": ONE,
    "a second process on the same run directory": ONE,
    # ranks
    "SIGKILL to one of two processes, which torchrun starts anew": TWO,
    "SIGKILL to one of two processes; resumed by hand": TWO,
    "SIGTERM to one of two processes": TWO,
    "SIGTERM to torchrun with two processes": TWO,
    "SIGTERM to torchrun and to both processes, *": TWO,
    "SIGTERM to one of two processes while they load a saved run": TWO,
    "two processes *": TWO,
    "SIGTERM to one of two processes that wait for a third, without torchrun": TWO,
    "one of two machines is killed, and another takes its place": TWO,
    # alike
    "2 processes beside one, *": ALIKE,
    "one of 2 processes killed in the middle of an update": ALIKE,
    "4 processes beside one, *": FOUR,
    "one of 4 processes killed in the middle of an update": FOUR,
    "a run handed on: 1 -> *": f"{RANKS}a_run_is_handed_on_to_two_processes_to_four_and_back",
    # data
    "a preparation killed *": f"{PREPARING}a_killed_preparation_leaves_no_process_and_loses_nothing",
    "a file of the encoded text damaged before a start": (
        f"{DATASET}a_flipped_bit_or_a_lost_byte_of_any_file_of_the_cache_is_found"
    ),
    "a file of the encoded text overwritten while a training reads it": (
        f"{DATASET}what_is_damaged_while_it_is_in_use_is_named_and_not_trained_on"
    ),
    # memory
    "too little memory for a batch, on a CPU": f"{OOM}a_run_with_too_little_memory_ends_like_one_with_enough",
    # workers
    "SIGKILL to one of two processes that translate": (
        f"{PROCESSES}two_processes_answer_as_one_and_a_killed_one_is_an_error"
    ),
    "SIGKILL to a translation in two processes, and given again": (
        f"{FAULTS}a_translation_that_is_killed_leaves_no_process_and_gives_all_when_given_again"
    ),
    # fuzz
    "fuzzed: *": f"{HOSTILE}every_case_ends_as_documented",
    # hostile
    "a pickle that runs a command as *": READ,
    "a YAML tag that makes an object, *": READ,
    "* in an export's manifest": READ,
    "a run's config.yaml with another run_dir *": READ,
    "trainer.pt of * bytes that unfold to *": (
        f"{HOSTILE}a_state_that_unfolds_without_bound_ends_a_resumed_run_at_once"
    ),
    "a pipe as *": READ,
    "a directory as *": READ,
    "translate.py --*": f"{HOSTILE}numbers_beyond_all_measure_are_refused",
    "/dev/zero as configuration": f"{HOSTILE}a_configuration_without_end_is_refused",
    "/dev/zero as weights": f"{PLACES}a_device_is_not_read",
    "weights that announce a header *": f"{HOSTILE}a_header_without_end_is_a_damaged_file",
    "8 GB as *": f"{PLACES}a_file_of_a_run_that_is_far_too_large_is_not_read_whole",
    "100 layers, 1,000 hypotheses *": f"{HOSTILE}a_search_that_no_memory_holds_is_refused_before_it_starts",
    "training on *": f"{HOSTILE}a_vocabulary_of_next_to_nothing_trains_or_says_what_to_set",
    "a line of 100,000 words translated*": f"{HOSTILE}a_line_of_many_words_is_cut_and_answered",
    "1 GB without a line end as --*": f"{HOSTILE}a_partner_without_end_is_an_error_that_names_it",
    "1 GB *, translated": f"{HOSTILE}a_line_without_end_is_cut_and_answered",
    "a line of 100,000 words in *": f"{HOSTILE}a_long_line_of_the_text_is_left_out_or_refused",
    "a line of 16 MB in *": f"{HOSTILE}a_line_of_the_text_may_be_as_long_as_the_longest_and_no_longer",
    "a line of 1 GB in *": f"{HOSTILE}a_long_line_of_the_text_is_left_out_or_refused",
}

SLOW = {
    "SIGKILL to one of two processes, which torchrun starts anew",
    "SIGTERM to torchrun with two processes",
    "SIGTERM to one of two processes that wait for a third, without torchrun",
    "4 processes beside one, *",
    "one of 4 processes killed in the middle of an update",
}


def pattern_of(fault: str) -> str:
    """The one pattern that a row's name has; LookupError if there is none, or several."""
    found = [pattern for pattern in SHORT if fnmatchcase(fault, pattern)]
    if len(found) != 1:
        raise LookupError(f"{fault}: {found or 'no pattern'} in {Path(__file__).name}")
    return found[0]


def table(faults: Iterable[str]) -> str:
    """Markdown: the patterns that these rows have, with their tests."""
    tests = {}
    for fault in faults:
        try:
            pattern = pattern_of(fault)
        except LookupError:
            tests[fault] = "not named"
        else:
            tests[pattern] = f"`{SHORT[pattern]}`{' (`make slow`)' if pattern in SLOW else ''}"
    lines = ["| rows | short form, in `make test` if nothing else is said |", "|---|---|"]
    return "\n".join(lines + [f"| {name} | {test} |" for name, test in tests.items()])
