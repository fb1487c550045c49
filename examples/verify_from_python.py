# %% [markdown]
# # Verifying a network from Python
#
# A specification is written in symbols: `input_vars` and `output_vars` stand for what goes into a network and what
# comes out of it. The solver proves the property for every input of a region, or finds one that violates it.
# Runs in seconds on a CPU: `python examples/verify_from_python.py`, or cell by cell in an editor that knows `# %%`.

# %%
import torch
from torch import nn

from abcrown import ABCrownSolver, ConfigBuilder, VerificationSpec, input_vars, output_vars
from auto_LiRPA import BoundedModule

# %% [markdown]
# ## A network
# Three outputs, one per class: points near the origin, points in a ring around them, points far out.

# %%
torch.manual_seed(0)
points = 4 * torch.rand(2000, 2) - 2
labels = (points.norm(dim=1) > 0.7).long() + (points.norm(dim=1) > 1.5).long()
net = nn.Sequential(nn.Linear(2, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 3))
optimiser = torch.optim.Adam(net.parameters(), lr=0.02)
for _ in range(150):
    optimiser.zero_grad()
    nn.functional.cross_entropy(net(points), labels).backward()
    optimiser.step()
print(f"trained: {(net(points).argmax(1) == labels).float().mean():.1%} of the points are classified correctly")

# %% [markdown]
# ## Settings
# The keys are those of the YAML files (docs/options.md); two underscores stand for the dot. Everything is checked as it
# is set. What is not set has its default.

# %%
config = ConfigBuilder.from_defaults().set(general__device="cpu", bab__timeout=30, parallel__threads=1)
print("timeout:", config.to_dict()["bab"]["timeout"], "s; complete verifier:", config()["general"]["complete_verifier"])

# %% [markdown]
# ## A property that holds
# Around the origin class 0 wins, whatever the input is. Comparisons are joined by `&` and `|`, each in parentheses.
# The constraint on the inputs describes a box, that on the outputs what is to be proved.

# %%
x, y = input_vars(2), output_vars(3)
near_origin = (x >= -0.2) & (x <= 0.2)
class_0_wins = (y[0] > y[1]) & (y[0] > y[2])
spec = VerificationSpec.build_spec(x, y, near_origin, class_0_wins)

result = ABCrownSolver(spec, net, config, name="origin").solve()
print(f"around the origin: {result.verdict} ({result.status}), {result.stats['wall_s']:.2f} s")
assert result.success and result.verdict == "unsat"  # proved: no counterexample exists

# %% [markdown]
# Behind the proof are bounds. Those of the hidden layers hold for the whole box, and may be handed to a later run
# over a part of it: `solve(interm_bounds=result.reference)`.

# %%
for name, (lower, upper) in result.reference.items():
    print(f"  {name}: {int(((lower < 0) & (upper > 0)).sum())} of {lower.numel()} neurons can change their sign")

# %% [markdown]
# ## A property that does not hold
# In a larger box it is false. `sat` comes with a counterexample, which the module itself has confirmed. (A module is
# exported by every solver that gets it; a `BoundedModule` is exported once, and can be asked many times.)

# %%
wide = VerificationSpec.build_spec(x, y, (x >= -1.2) & (x <= 1.2), class_0_wins)
bounded = BoundedModule(net, torch.zeros(1, 2))
result = ABCrownSolver(wide, bounded, config, name="wide").solve()
print(f"in the wide box: {result.verdict} ({result.status})")
assert result.verdict == "sat" and result.counterexample is not None
with torch.no_grad():
    answer = net(result.counterexample.unsqueeze(0))[0]
print(f"  counterexample {result.counterexample.tolist()} -> {answer.tolist()}")
assert not (answer[0] > answer[1] and answer[0] > answer[2])

# %% [markdown]
# ## Several boxes, other questions
# Arithmetic with numbers, `|` for "or", arrays and tensors as bounds. Here: in two corners class 2 leads class 1 by
# more than half of what class 1 leads class 0 by, or the score of class 0 is negative.

# %%
corner = ((x >= [1.6, 1.6]) & (x <= [1.9, 1.9])) | ((x >= torch.tensor([-1.9, -1.9])) & (x <= -1.6))
question = (y[2] - y[1] > (y[1] - y[0]) / 2) | (y[0] < 0)
result = ABCrownSolver(VerificationSpec.build_spec(x, y, corner, question), bounded, config, name="corners").solve()
print(f"in the corners: {result.verdict} ({result.status})")

# %% [markdown]
# A ball around a point, and one class that has to win:

# %%
for eps in (0.02, 0.1, 0.5):
    ball = VerificationSpec.build_spec(center=points[0], eps=eps, label=int(labels[0]), n_outputs=3)
    result = ABCrownSolver(ball, bounded, config, name=f"eps {eps}").solve()
    print(f"point {points[0].tolist()}, eps {eps}: {result.verdict} ({result.status})")

# %% [markdown]
# The same question as a VNN-LIB file, for other tools or for `abcrown --onnx_path ... --vnnlib_path ...`:

# %%
print(spec.to_vnnlib())
