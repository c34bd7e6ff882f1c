"""The rules by which a study's questions are answered, as every report prints them."""

from __future__ import annotations

from .bootstrap import BOOTSTRAPPED

FEWEST = 3  # seeds

RULES = (
    "Arms are compared within seeds: one seed gives both the same data order and the same initial values"
    " for what they share. Where no run diverged, the paired t test over seeds decides at 5 % (two-sided);"
    " intervals are Student's at 95 %; the effect size is Cohen's d_z, the mean difference over the deviation"
    " of the differences. Where the differences of all seeds are alike but for rounding, a t test would be"
    " certain of anything, and the sign test over seeds decides in its place.",
    "The validation loss of a run is its best validation loss, that of the model it left: the best one that"
    " it validated, by train.metric, or the average where that was better. It is not the last one. The gap is"
    " from the last validation, and the training loss from the last log line.",
    f"Fewer than {FEWEST} seeds in common are too few for any answer: not testable.",
    "A run that diverged is worse than any that did not, by no stated amount. So is one that ended without a"
    " finite number for what is compared; and, for the updates to a target, one that has not reached it."
    f" An arm that diverged with every seed is worse than one that did with none, from {FEWEST} seeds on. If,"
    " given the seed, both runs fail independently and equally often, with a probability q, then at each"
    " seed the one fails and the other does not with q (1 - q), which is at most 1/4 whatever the seed's"
    " q; they part so cleanly with a probability of at most 2/4^n, 3 % with three seeds. Where some seeds"
    " diverged, the sign test over seeds decides. It counts a seed at which one of the two diverged, or"
    " the two differ by more than the margin, and it takes six of them to decide anything. Where both arms"
    " diverged with every seed there is nothing to compare.",
    "The updates to a target are where the validation loss, straight between validations, first is at the"
    " study's target. Of a run that is there at its first validation this is an upper bound, shown as ≤. A"
    " seed at which both sides are there by then tells nothing: it is left out, and named. Where one side is,"
    " the difference is at least as large as the numbers say, and a note names the seeds.",
    '"Better" and "worse" are reproduced when the difference is significant and its whole interval lies'
    " beyond the margin on the side that is claimed, and not reproduced when the whole interval leaves out"
    ' any such difference. "Differs" is reproduced with the interval beyond the margin on either side, and'
    ' not reproduced with the interval within it. "Same", "no worse" and "no better" are reproduced when the'
    " whole interval lies within the margin, not reproduced when it lies wholly beyond. In all other cases"
    " the seeds do not decide, and the answer is not testable: that no difference is significant does not"
    " show that there is none.",
    "The range of workable rates is how many decades of the learning rate, within those tried, have a"
    " validation loss of at most the study's target, the loss taken to be straight over the log of the rate;"
    " a diverged run counts as the lowest loss that any of the compared runs began with. It is found for each"
    " seed that has a result at every rate. No workable rate at all counts as divergence does, and a seed at"
    " which both sides work at every rate that was tried tells nothing.",
    'A question about a difference of differences ("as differences") compares what one pair differs by with'
    " what another pair differs by, within seeds. Where the first of a pair failed and the second did not,"
    " the difference is worse than any; where the second failed, the seed is left out, and named.",
    'Over "best", whatever the question leaves open (the learning rate, say) is tuned for each arm, among the'
    " settings for which most seeds have ended: fewest diverged seeds first, then the lowest validation loss,"
    " as a mean over seeds; test sets are not looked at. The seeds that chose the best setting also compare"
    " it, so it looks better than it is, the more so the more settings were tried: nothing corrects for"
    " that, and a note says where one arm had more tries than the other.",
    'Over "each", every setting is compared by itself with Holm\'s p values, those of clean splits included;'
    " several settings therefore take more seeds (two to six settings that all part cleanly need four). All"
    " reproduced is reproduced, none is not reproduced, some of each is mixed; settings that cannot be tested"
    " are named and do not count.",
    "Nothing corrects for the number of questions of a study: of twenty that are all in truth without a"
    " difference, one is expected to show a significant one.",
    f"The bootstrap over sentences is made for questions of at most {BOOTSTRAPPED} settings.",
)
