import torch

from plinth.algos.losses import token_nll_sum


def test_sum_equals_the_definition():
    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(1))
    targets = torch.tensor([0, 6, 3, 3, 1])
    p = logits.double().exp() / logits.double().exp().sum(1, keepdim=True)
    wanted = -sum(float(p[row, t].log()) for row, t in enumerate(targets.tolist()))
    assert abs(float(token_nll_sum(logits, targets)) - wanted) < 1e-5


def test_half_precision_is_summed_in_float32():
    logits = torch.zeros(3000, 2, dtype=torch.bfloat16)
    loss = token_nll_sum(logits, torch.zeros(3000, dtype=torch.long))
    assert loss.dtype == torch.float32
    assert abs(float(loss) - 3000 * 0.6931472) < 0.1
