"""The parts of the module that is written, as Python source."""

from __future__ import annotations

HEADING = '''"""{title}, tuned by hyperrbp {version}.

{run}

{uses}

{notes}
"""
'''

SETTINGS = """
STEPS = {steps}  # of the run

# What {optimizer} is given for every tensor, by its name.{when}
SETTINGS = {settings}
"""

STRETCHES = """
# What changes on the way: one after the other, each for an equal part of the run.
IN_STRETCHES = {values}
"""

GROUPS = '''

def parameter_groups(model):
    """One group a parameter tensor, by the names of ``model.named_parameters()``.

    Parameters that require no gradient are held fixed, and in no group.
    """
    parameters = {name: of for name, of in model.named_parameters() if of.requires_grad}
    if parameters.keys() != SETTINGS.keys():
        different = sorted(parameters.keys() ^ SETTINGS.keys())
        raise ValueError(f"not the network that was tuned; tensors that differ: {different}")
    return [{"params": [parameters[name]], "name": name, **of} for name, of in SETTINGS.items()]
'''

IN_STRETCH = '''

def in_stretch(key, step):
    """What every tensor is given at a training step, by its name."""
    values = IN_STRETCHES[key]
    return values[min(step, STEPS - 1) * len(values) // STEPS]
'''

FACTOR = '''

def factor(step):
    """The share of its peak that a learning rate has at a training step."""
    step = min(step, STEPS - 1)  # beyond the run: as in its last step
{lines}
'''

WARMING = """\
    length = WARMUP_SHARE * STEPS
    warming = min(1.0, (step + 1) / (length + 1))
"""

AFTER_WARMUP = """\
    p = (step - length) / (STEPS - length) if step > length else 0.0
"""

SCHEDULER = '''

class Scheduler(torch.optim.lr_scheduler.LambdaLR):
    """Sets learning rates by their factors, and what else changes on the way."""

    def step(self, epoch=None):
        super().step(epoch)
        optimizer = self.optimizer
        for group in optimizer.param_groups:
            now = {{
                key: in_stretch(key, self.last_epoch)[group["name"]]
                for key in IN_STRETCHES
                if key != "lr"
            }}
{before_change}            group.update(now)
'''

SCHEDULE = '''

def schedule(optimizer):
    """A scheduler: call its ``step()`` after every ``optimizer.step()``."""
{body}
'''

INIT_SCALE = '''

# Of initial weights as the recipe has them, model.init_std: {init_std}.
INIT_SCALE = {scales}


def scale_initial_weights(model):
    """Once, before the training."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, scale in INIT_SCALE.items():
            parameters[name].mul_(scale)
'''

DECAY_BY_WEIGHT = '''

@cache
def weight_decay():
    """One weight decay for every weight, flat, by the name of its tensor."""
    return load_file(Path(__file__).with_name("{file}"))
'''

ADD_DECAY = '''

def add_weight_decay(model):
    """Between ``loss.backward()`` and ``optimizer.step()``: λ∘w is added to the gradient."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, decay in weight_decay().items():
            parameter = parameters[name]
            parameter.grad.addcmul_(decay.to(parameter).view_as(parameter), parameter)
'''

SHRINK = '''

def shrink_weights(optimizer):
    """Before ``optimizer.step()``: every weight is multiplied by 1 − lr λ."""
    with torch.no_grad():
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                decay = weight_decay()[group["name"]].to(parameter).view_as(parameter)
                parameter.addcmul_(decay, parameter, value=-group["lr"])
'''

EXAMPLES = '''

@cache
def example_weights():
    """(rows, weights): examples of the training data by their number, and the weight of each.

    Numbered from 0, {numbered}.
    The loss of a minibatch is ``(weights * losses).mean()``, with the loss of each example.
    """
    found = load_file(Path(__file__).with_name("{file}"))
    return found["rows"], found["weights"]
'''

NUMBERED = {
    "file.npz": "as in x_train or inputs",
    "folder/": "as the image files of train/ are sorted",
    "torchvision:NAME": "as torchvision's training part has them",
    "text": "by the place in the text to train on at which a window begins",
    "file.py:function": "as in the data to train on that the function returns",
}
"""How examples are numbered, for each kind of data of the user's own."""
