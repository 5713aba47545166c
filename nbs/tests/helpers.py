"""What the notebooks of this folder share: drawings, edits that are looked at closely, tables."""
import io, json, os, re, tempfile, time, traceback, unicodedata, warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch
import numpy as np
from IPython.display import Markdown
from numpy.random import Generator
from PIL import Image, ImageDraw
from typer.testing import CliRunner
from diffedit.apps.cli import app
from diffedit.cost import peak_memory
from diffedit.display import show_figure
from diffedit.editing import edit
from diffedit.options import InputError

CAPTIONS = dict(source='a bowl of strawberries', target='a bowl of oranges')
CHEAP = dict(steps=2, draws=2)


# Drawings

def pick(rng: Generator, things: Iterable):
    "One of them."
    things = list(things)
    return things[rng.integers(len(things))]

def draw_size(rng: Generator) -> tuple[int, int]:
    "A size that is taken, and is not slow."
    short = int(np.exp(rng.uniform(np.log(16), np.log(200))))
    long = int(rng.integers(short, min(4*short, 400) + 1))
    return (short, long)[::int(rng.choice([-1, 1]))]

def draw_colors(rng: Generator, n: int) -> list[tuple[int, ...]]:
    return [tuple(map(int, color)) for color in rng.integers(0, 256, (n, 3))]

def draw_scene(
    rng: Generator,
    size: tuple[int, int] | None = None,  # by default one of `draw_size`
) -> Image.Image:
    "A bowl on a table. No two corners look alike, so that one sees which way is up."
    w, h = size or draw_size(rng)
    [wall], [fruit], [table] = (draw_colors(rng, 1) for _ in range(3))
    image = Image.new('RGB', (w, h), wall)
    pen = ImageDraw.Draw(image)
    pen.rectangle((0, h*.6, w, h), table)
    for x, y in zip(rng.uniform(.3, .7, 7)*w, rng.uniform(.35, .55, 7)*h):
        pen.ellipse((x - w*.09, y - h*.09, x + w*.09, y + h*.09), fruit)
    [bowl] = draw_colors(rng, 1)
    pen.pieslice((w*.2, h*.3, w*.8, h*.85), 0, 180, bowl)
    corners = (0, 0), (w*.85, 0), (0, h*.85), (w*.85, h*.85)
    for (x, y), color in zip(corners, draw_colors(rng, 4)):
        pen.rectangle((x, y, x + w*.15, y + h*.15), color)
    return image

def encode(image: Image.Image, format: str, **options) -> bytes:
    "The bytes of an image's file."
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()

def rgb(image: Image.Image) -> np.ndarray:
    "Its colors, (H, W, 3) uint8."
    return np.asarray(image.convert('RGB'))

def same(a: Image.Image, b: Image.Image) -> bool:
    "Whether two images are of one mode and size, with the same pixels."
    return a.mode == b.mode and a.size == b.size and np.array_equal(np.asarray(a), np.asarray(b))

INTEGERS = {'I;16': '<u2', 'I;16B': '>u2', 'I': '<i4'}

def convert(image: Image.Image, mode: str) -> tuple[Image.Image, np.ndarray]:
    "An RGB image in another mode, and what it shows then: in one bit a pixel little is left of it."
    gray = image.convert('L')
    if mode in INTEGERS:
        deep = np.asarray(gray).astype(int)*257
        return Image.fromarray(deep.astype(INTEGERS[mode])), rgb(gray)
    if mode == 'F': return Image.fromarray(np.asarray(gray).astype(np.float32)/255), rgb(gray)
    made = image.convert('LA').convert('PA') if mode == 'PA' else image.convert(mode)
    if mode in ('RGBA', 'LA'): made.putalpha(Image.linear_gradient('L').resize(image.size))
    return made, rgb(made)


# An edit, looked at closely

@dataclass
class Trial:
    "How an edit ended, and all that is wrong with that."
    end: str = 'failed'   # 'edited', 'refused' or 'failed'
    message: str = ''     # of a refusal
    png: bytes = b''      # what was written
    problems: list[str] = field(default_factory=list)

@contextmanager
def capture_stderr() -> Iterator[list[str]]:
    "What is written meanwhile to the process's stderr, by C libraries too: one text, at the end."
    captured, old = [], os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try: yield captured
        finally:
            os.dup2(old, 2)
            os.close(old)
            file.seek(0)
            captured.append(file.read().decode(errors='replace').strip())

@contextmanager
def bound_cost(
    model,
    problems: list[str],   # where to complain
    memory: float = 1.5e9, # bytes more than there were
    seconds: float = 20,
) -> Iterator[None]:
    "Complain of what takes too long, or too much memory."
    before, start = peak_memory(model.device, anew=True), time.perf_counter()
    yield
    took, grew = time.perf_counter() - start, peak_memory(model.device) - before
    if took > seconds: problems.append(f'slow: {took:.1f} s')
    if grew > memory: problems.append(f'memory: {grew/1e9:.1f} GB more')

def trace(error: BaseException) -> str:
    "The error, and the innermost places that it came through."
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    places = ' > '.join(f'{Path(f.filename).name}:{f.lineno} {f.name}' for f in frames)
    return ascii(f'{type(error).__name__}: {str(error)[:200]} [{places}]')

def bad_warnings(caught: list) -> list[str]:
    "Warnings of ours that are too long, and all others about our code or Pillow's."
    bad = []
    for w in caught:
        text = str(w.message)
        ours = text.startswith(('caption: ', 'inversion: '))
        if ours and len(text) > 2000: bad.append(f'a warning of {len(text)} characters')
        if not ours and re.search(r'\b(PIL|diffedit)\b', w.filename):
            bad.append(f'warning: {w.category.__name__}: {text[:100]!a}')
    return bad

def try_function(
    model,
    picture: Path,
    captions: dict[str, str],  # source and target, perhaps negative
    folder: Path,              # for what it writes; left as it was
    verify: Callable,          # of the `Edit` and its file: a list of what is wrong with them
    memory: float = 1.5e9,     # bytes that it may take
) -> Trial:
    "Edit and save by `edit`."
    trial, out = Trial(), folder/'function.png'
    with (warnings.catch_warnings(record=True) as caught, bound_cost(model, trial.problems, memory),
          capture_stderr() as noise):
        warnings.simplefilter('always')
        try:
            e = edit(model, picture, **captions, **CHEAP)
            e.save(out)
            trial.problems += verify(e, out)
            trial.end = 'edited'
        except InputError as error: trial.end, trial.message = 'refused', str(error)
        except Exception as error: trial.problems.append('edit: ' + trace(error))
    trial.problems += bad_warnings(caught)
    if noise[0]: trial.problems.append(f'noise: {noise[0][:200]!a}')
    trial.png = out.read_bytes() if out.exists() else b''
    if trial.png and trial.end != 'edited':
        trial.problems.append(f'{trial.end}, and a file was written')
    out.unlink(missing_ok=True)
    return trial

def compare_command(result, trial: Trial, out: Path) -> list[str]:
    "What a command did otherwise than the function; `result` is typer's, `out` its PNG."
    said, exception = result.stderr, result.exception
    code = dict(edited=0, refused=2).get(trial.end)
    if exception and not isinstance(exception, SystemExit): return ['command: ' + trace(exception)]
    if result.exit_code != code:
        return [f'command: exit {result.exit_code}, though {trial.end}: {said[:200]!a}']
    if trial.end == 'edited' and out.read_bytes() != trial.png:
        return ['command and function wrote different files']
    warned = all(line.startswith('warning: caption: ') for line in said.splitlines())
    if trial.end == 'edited' and not warned or len(said) > 5000:
        return [f'stderr of the command: {said[:200]!a}']
    named = said.startswith(f"diffedit: {trial.message.split(':')[0]}: ")
    if trial.end == 'refused' and not (named and said.count('\n') == 1):
        return [f'the command says {said[:200]!a}']
    return []

def try_command(
    model,
    picture: Path,
    captions: dict[str, str],
    folder: Path,   # for what it writes; left as it was
    trial: Trial,   # of the function: how it should end
) -> list[str]:
    "What is wrong with what `diffedit edit` does, as it stands in a shell but for the shell."
    problems, out, before = [], folder/'command.png', set(folder.iterdir())
    args = ['edit', str(picture), '-o', str(out)]
    for name, value in (captions | CHEAP).items(): args += [f'--{name}', str(value)]
    def opened(*args, **kwargs): return model
    with (patch('diffedit.models.load_model', opened), bound_cost(model, problems),
          capture_stderr() as noise):
        result = CliRunner().invoke(app, args)
    problems += compare_command(result, trial, out)
    strange = [c for c in result.output if unicodedata.category(c) in ('Cc', 'Cs') and c != '\n']
    if strange: problems.append(f'the command prints {strange[:9]!a}')
    if noise[0]: problems.append(f'noise of the command: {noise[0][:200]!a}')
    out.unlink(missing_ok=True)
    left = set(folder.iterdir()) - before
    if left: problems.append(f'left behind: {[f.name for f in left]}')
    return problems

def plain(settings) -> dict:
    "Settings as JSON brings them back."
    return json.loads(json.dumps(settings))


# Tables and bars

def show_table(heads: list[str], rows: Iterable[Iterable], align: str = '') -> Markdown:
    "A table; `align` has an `l` or `r` for each column: by default all but the first right."
    rules = ['---:' if a == 'r' else '---' for a in align or 'l' + 'r'*(len(heads) - 1)]
    lines = ['| ' + ' | '.join(map(str, row)) + ' |' for row in (heads, rules, *rows)]
    return Markdown('\n'.join(lines))

def show_ends(ends: dict[str, dict], size: tuple[float, float], xlabel: str, alt: str):
    "A bar for each entry, of how many (or which share) were edited, refused and failed."
    import matplotlib.pyplot as plt
    fig, ax = plt.subplots(figsize=size)
    left = np.zeros(len(ends))
    for end, color in dict(edited='tab:green', refused='tab:blue', failed='tab:red').items():
        n = np.array([counts.get(end, 0) for counts in ends.values()])
        ax.barh(list(ends), n, left=left, color=color, label=end)
        left += n
    ax.invert_yaxis()
    ax.set_xlabel(xlabel)
    ax.tick_params(labelsize=7)
    ax.legend(fontsize=7, frameon=False, loc='upper left', bbox_to_anchor=(1, 1))
    show_figure(fig, alt)
