"""The service of ``docs/service.md`` under load."""

import asyncio
import importlib.util
import queue
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from test_docs import FENCE

from zennit_attn.errors import InputError

ROOT = Path(__file__).parent.parent
TEXTS = ["the keys to the old cabinet", "the dog near the trees", "the keys", "the trees near the dog"]
HAS_WEB = all(importlib.util.find_spec(name) for name in ("fastapi", "httpx"))


@pytest.fixture(scope="module")
def service():
    blocks = [match for match in FENCE.finditer((ROOT / "docs/service.md").read_text()) if match["kind"] == "python"]
    names = {}
    for block in blocks:
        if block["reason"] is None or HAS_WEB:
            exec(block["text"], names)
    return names


@pytest.fixture(scope="module")
def expected(service):
    return {text: service["explainer"](text) for text in TEXTS}


class Predicting:
    """Threads that predict all the time, by what the service explains."""

    def __init__(self, explainer, count):
        self.model, self.stop, self.wrong = explainer.model, threading.Event(), []
        self.given = explainer.question(TEXTS[0]).batch
        self.expected = self.predict()
        self.threads = [threading.Thread(target=self.run) for _ in range(count)]

    def predict(self):
        with torch.inference_mode():
            return self.model(**self.given).logits

    def run(self):
        while not self.stop.is_set():
            try:
                # as rules compute the same in another order
                torch.testing.assert_close(self.predict(), self.expected, rtol=1e-4, atol=1e-5)
            except BaseException as error:  # whatever it is
                self.wrong.append(error)

    def __enter__(self):
        for thread in self.threads:
            thread.start()

    def __exit__(self, *error):
        self.stop.set()
        for thread in self.threads:
            thread.join()
        assert self.wrong == []


@pytest.mark.parametrize("predicting", [0, 2])
def test_many_clients(service, expected, predicting):
    explainer, batches = service["explainer"], service["batches"]

    def client(number):
        text = TEXTS[number % 4]
        if number % 5 == 4:
            # beside the batches, one by one
            return text, explainer(text)
        return text, batches.ask({"text": text}).result(60)

    with Predicting(explainer, predicting), ThreadPoolExecutor(8) as pool:
        found = list(pool.map(client, range(60)))
    for text, got in found:
        assert got.rows[0].label == expected[text].rows[0].label
        assert got.warnings == expected[text].warnings
        # float32, and padded to the longest of its batch
        torch.testing.assert_close(
            torch.as_tensor(got.parts[0].relevance),
            torch.as_tensor(expected[text].parts[0].relevance),
            rtol=1e-3,
            atol=1e-4,
        )
    assert not any("forward" in vars(module) for module in explainer.model.modules())


def test_a_row_that_cannot_be_explained_is_alone_in_that(service, expected):
    batches = service["batches"]
    asked = [batches.ask({"text": text} if text else {"texts": 3}) for text in (TEXTS[0], "", TEXTS[1])]
    assert asked[0].result(60).rows[0].label == expected[TEXTS[0]].rows[0].label
    with pytest.raises(InputError):
        asked[1].result(60)
    assert asked[2].result(60).rows[0].label == expected[TEXTS[1]].rows[0].label


def test_who_comes_when_too_many_are_waiting_is_told(service):
    waiting = service["Batches"].__new__(service["Batches"])
    waiting.waiting = queue.Queue(1)
    waiting.ask({"text": "the keys"})
    with pytest.raises(queue.Full):
        waiting.ask({"text": "the keys"})


@pytest.mark.skipif(not HAS_WEB, reason="needs fastapi and httpx")
@pytest.mark.parametrize("predicting", [0, 2])
def test_requests(service, expected, predicting):
    import httpx

    async def load():
        transport = httpx.ASGITransport(app=service["app"])
        async with httpx.AsyncClient(transport=transport, base_url="http://service", timeout=60) as client:
            asked = [client.post("/explain", json={"text": TEXTS[number % 4]}) for number in range(40)]
            wrong = client.post("/explain", json={"text": TEXTS[0], "target": "no such word"})
            return await asyncio.gather(*asked, wrong)

    with Predicting(service["explainer"], predicting):
        *found, wrong = asyncio.run(load())
    assert wrong.status_code == 422
    for number, response in enumerate(found):
        assert response.status_code == 200
        assert response.json()["rows"][0]["label"] == expected[TEXTS[number % 4]].rows[0].label
