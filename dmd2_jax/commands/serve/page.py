"""The page itself: what Gradio shows, and what happens at a click."""

from collections.abc import Iterator
from typing import Any

import gradio as gr
from jax.errors import JaxRuntimeError

from dmd2_jax.commands.serve.drawing import Drawer
from dmd2_jax.commands.serve.live import Live, Seen
from dmd2_jax.commands.serve.markup import drawn_html, empty_html, picture_html, said_html, top_html
from dmd2_jax.commands.serve.subjects import MOST, Offer, Request
from dmd2_jax.run.checkpoint import CheckpointError

__all__ = ["page"]

_SECONDS = 5
"""Between two looks at the run folder."""

_FAULTS = (ValueError, CheckpointError, OSError, JaxRuntimeError)
"""What is said on the page; anything else is a fault of the program, and said by the server."""

_ITSELF = "itself"


def page(drawer: Drawer, live: Live | None) -> gr.Blocks:
    """Build the page.

    Args:
      drawer: draws.
      live: looks at the run; None: there is none.
    """
    title = drawer.subject.title
    with gr.Blocks(title=f"{title} - dmd2", analytics_enabled=False) as blocks:
        seen = None if live is None else live.look()
        top = gr.HTML(top_html(title, "" if seen is None else seen.words), elem_id="top")
        with gr.Row(elem_id="drawing"):
            with gr.Column(scale=1, min_width=260, elem_id="asked"):
                fields, draw, following = _controls(drawer.subject.offer)
                said = gr.HTML(said_html(""), elem_id="said")
            with gr.Column(scale=4, min_width=320), gr.Row():
                columns = {
                    network: gr.HTML(empty_html(network), elem_id=network, min_width=240)
                    for network in drawer.subject.offer.networks
                }
        outputs = [said, *columns.values()]

        def drawn(*values: Any) -> Iterator[list[Any]]:
            yield from _draw(drawer, _request(dict(zip(fields, values, strict=True))))

        asked: dict[str, Any] = {"fn": drawn, "inputs": list(fields.values()), "outputs": outputs}
        asked |= {"show_progress": "hidden", "api_visibility": "private"}
        asked["trigger_mode"] = "always_last"  # what is asked while it draws comes next
        draw.click(**asked)
        for name in ("what", "seed"):
            if name in fields and hasattr(fields[name], "submit"):
                fields[name].submit(**asked)
        following.click(
            _following, fields["seed"], fields["seed"], show_progress="hidden",
            api_visibility="private",
        ).success(**asked)  # fmt: skip
        if live is not None and seen is not None:
            _watch(live, seen, top, title)
    return blocks


def _controls(offer: Offer) -> tuple[dict[str, Any], gr.Button, gr.Button]:
    """Make the fields of a request, as far as there is a choice, and the two buttons."""
    fields: dict[str, Any] = {}
    if offer.of_prompts:
        # Of one line, which grows: Enter draws, where it would begin another line of three.
        fields["what"] = gr.Textbox(label="Prompt", max_lines=8, elem_id="what")
    elif offer.classes:
        choices = [("all, by turns", ""), *offer.classes]
        fields["what"] = gr.Dropdown(
            choices, value="", label="Class", info="its number or its name", elem_id="what",
            allow_custom_value=True, filterable=True,
        )  # fmt: skip
    with gr.Row():
        fields["seed"] = gr.Number(value=0, label="Seed", elem_id="seed", min_width=110)
        fields["num"] = gr.Number(
            value=1 if offer.of_prompts else 4, label="Pictures", minimum=1, maximum=MOST,
            precision=0, min_width=90,
        )  # fmt: skip
    if offer.averages:
        averages = [(f"its average of decay {decay:g}", f"{decay:g}") for decay in offer.averages]
        choices = [("itself", _ITSELF), *averages]
        fields["ema"] = gr.Dropdown(choices, value=_ITSELF, label="Student")
    for network, steps in offer.steps.items():
        fields["steps"] = gr.Number(
            value=steps, label=f"Steps of the {network}", minimum=1, precision=0, min_width=110
        )
    if offer.scales is not None:
        low, high = offer.scales
        fields["guidance"] = gr.Slider(
            low, high, value=offer.guidance, label="Guidance", step=(high - low) / 60
        )
    elif offer.guidance is not None:
        fields["guidance"] = gr.Number(
            value=offer.guidance, label="Guidance of the teacher", minimum=1, min_width=110
        )
    if offer.guidance is not None and offer.of_prompts and "teacher" in offer.networks:
        fields["negative"] = gr.Textbox(label="Away from (negative prompt)", lines=1)
    with gr.Row():
        draw = gr.Button("Draw", variant="primary", min_width=110, elem_id="draw")
        following = gr.Button("Next seed", min_width=110, elem_id="next")
    return fields, draw, following


def _request(values: dict[str, Any]) -> Request:
    """Make a request of what the page sent; a field that is left empty is a usual value."""
    given = {name: value for name, value in values.items() if value is not None}
    if "ema" in given:
        given["ema"] = None if given["ema"] == _ITSELF else float(given["ema"])
    if "seed" in values and values["seed"] is None:
        given["seed"] = None  # which is refused, as no other seed was meant
    return Request(**given)


def _following(seed: Any) -> Any:
    return seed + 1 if isinstance(seed, int) else seed


def _draw(drawer: Drawer, request: Request) -> Iterator[list[Any]]:
    """Yield what is said and what stands in each column, as it comes: the student is quicker."""
    networks = list(drawer.subject.offer.networks)
    shown: dict[str, Any] = dict.fromkeys(networks, gr.skip())

    def now(words: str, *, fault: bool = False) -> list[Any]:
        return [said_html(words, fault=fault), *shown.values()]

    try:
        drawer.subject.check(request)
    except _FAULTS as error:
        shown = {network: empty_html(network) for network in networks}
        yield now(str(error), fault=True)
        return
    for network in reversed(networks):
        words = f"The {network} draws …"
        if drawer.must_compile(network, request):
            words = (
                f"Compiling the {network}'s program for this number of pictures. It is done once, "
                "and takes seconds to minutes …"
            )
        yield now(words)
        try:
            shown[network] = drawn_html(network, drawer.draw(network, request), request.seed)
        except _FAULTS as error:
            shown[network] = empty_html(network, str(error).partition("\n")[0])
    yield now("")


def _watch(live: Live, seen: Seen, top: gr.HTML, title: str) -> None:
    """Show the run's own pictures, and look every few seconds whether there are new ones."""
    gr.HTML("<h2>The run</h2>")
    with gr.Row(elem_id="run"):
        with gr.Column(scale=2, min_width=280):
            grid = gr.HTML(picture_html(seen.grid, seen.grid_words, "sample grid"), elem_id="grid")
        with gr.Column(scale=5, min_width=320):
            curves = gr.HTML(
                picture_html(seen.curves, seen.curves_words, "curves"), elem_id="curves"
            )
    version = gr.State(seen.version)

    def look(there: str) -> list[Any]:
        now = live.look()
        words = top_html(title, now.words)
        if now.version == there:
            return [words, gr.skip(), gr.skip(), gr.skip()]
        return [
            words,
            picture_html(now.grid, now.grid_words, "sample grid"),
            picture_html(now.curves, now.curves_words, "curves"),
            now.version,
        ]

    gr.Timer(_SECONDS).tick(
        look, version, [top, grid, curves, version], show_progress="hidden",
        api_visibility="private",
    )  # fmt: skip
