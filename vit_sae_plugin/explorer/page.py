"""The page as Gradio's blocks: it shows the parts, and hands what the visitor does to ``act``.

Gradio finds by their annotations what to pass to functions, so here these aren't put off.
"""

import json
import os
from collections.abc import Mapping
from importlib import resources
from itertools import count
from typing import Any

from vit_sae_plugin.explorer.actions import PARTS, act
from vit_sae_plugin.explorer.explorer import Explorer
from vit_sae_plugin.explorer.views import (
    answer_view,
    head_view,
    latents_view,
    notice_view,
    picture_view,
    shelf_view,
)
from vit_sae_plugin.explorer.visit import Visit, Visits

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read where Gradio is imported, and later

_VIEWS = {
    "picture": picture_view,
    "shelf": shelf_view,
    "answer": answer_view,
    "latents": latents_view,
}
_TITLE = "vit-sae explore"
_FORGOTTEN = "this page was left for long, and was begun anew"


def import_gradio() -> Any:
    """The module ``gradio``.

    Raises:
        ImportError: it isn't installed; says how to install it.
    """
    try:
        import gradio
    except ImportError as error:
        raise ImportError(
            f"the explorer needs Gradio, which isn't installed ({error}): "
            "pip install 'vit-sae-plugin[app]'"
        ) from None
    return gradio


def page_file(name: str) -> str:
    """The page's style or script."""
    return resources.files("vit_sae_plugin.explorer").joinpath(name).read_text(encoding="utf-8")


def build_page(explorer: Explorer) -> tuple[Any, Visits]:
    """The page, and the visits that are made on it.

    No component takes a file, so nothing a browser sends is ever taken for a path, and no event
    can be called by name from outside.
    """
    gr: Any = import_gradio()
    visits, answers = Visits(explorer), count()
    classifiers = next(iter(explorer.classifiers.values()))

    with gr.Blocks(title=_TITLE, analytics_enabled=False) as page:
        with gr.Column(elem_classes="explore-page"):
            _part(gr, "head", head_view(explorer))
            notices = _part(gr, "notices")
            with gr.Row(elem_id="columns", equal_height=False):
                with gr.Column(scale=5, min_width=340, elem_id="left"):
                    parts = {name: _part(gr, name) for name in ("picture", "shelf", "answer")}
                    with gr.Group(visible=classifiers.is_zero_shot, elem_id="ask"):
                        classes = gr.Textbox(
                            label="Classes to choose from, with commas between them",
                            lines=1,
                            max_lines=3,
                            elem_id="classes",
                        )
                        template = gr.Dropdown(
                            list(explorer.templates),
                            label="Prompt: a template with {} for the class, or a set of them",
                            allow_custom_value=True,
                            elem_id="template",
                        )
                with gr.Column(scale=7, min_width=340, elem_id="right"):
                    parts["latents"] = _part(gr, "latents")
            bridge = gr.HTML(elem_id="bridge", js_on_load=page_file("page.js"))
        shown = [parts[name] for name in PARTS]

        def drawn(visit: Visit, changed: frozenset[str]) -> list[Any]:
            views = [_VIEWS[name](visit) if name in changed else gr.skip() for name in PARTS]
            reply = {"query": visit.state.to_query(), "answer": next(answers)}
            return [*views, notice_view(visit), json.dumps(reply)]

        def begin(request: gr.Request) -> list[Any]:
            visit = visits.begin(_key(request), dict(request.query_params))
            return [*drawn(visit, frozenset(PARTS)), visit.classes, visit.template]

        def answer(said: Mapping[str, Any], request: gr.Request) -> list[Any]:
            visit = visits.get(_key(request))
            if visit is None:
                visit = visits.begin(_key(request), {})
                visit.notices.append(_FORGOTTEN)
                return drawn(visit, frozenset(PARTS))
            return drawn(visit, act(visit, said))

        def on_act(event: gr.EventData, request: gr.Request) -> list[Any]:
            return answer(event._data, request)

        def on_ask(classes: str, template: str, request: gr.Request) -> list[Any]:
            return answer({"kind": "ask", "classes": classes, "template": template}, request)

        def on_leave(request: gr.Request) -> None:
            visits.end(_key(request))

        outputs = [*shown, notices, bridge]
        settings = {
            "api_visibility": "private",
            "show_progress": "hidden",
            "concurrency_id": "models",
            "concurrency_limit": 1,
        }
        page.load(begin, None, [*outputs, classes, template], **settings)
        bridge.act(on_act, None, outputs, trigger_mode="multiple", **settings)
        for asked in (classes.submit, classes.blur, template.input):
            asked(on_ask, [classes, template], outputs, trigger_mode="always_last", **settings)
        page.unload(on_leave)
    return page, visits


def _part(gr: Any, name: str, content: str = "") -> Any:
    return gr.HTML(content, elem_id=name, js_on_load=None, apply_default_css=False)


def _key(request: Any) -> str:
    return str(request.session_hash)
