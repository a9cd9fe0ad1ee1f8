"""How pages are read, and how what they show is compared."""

import numpy as np
import pytest

from tests.docs.pages import snippets
from tests.docs.printed import check_value, differences, values_in_comments

PAGE = """# A page
Text with `vit-sae train --resume runs/a`, `vit-sae` and `model.check()`.

```python
print(1)
```

```text
1
```
Between them:
```text
no output
```

=== "Linux"
    ```sh
    # only a comment
    vit-sae eval a \\
        --images b  # why
    make demo
    ```

```yaml title="sweep.yaml"
grid: {}
```
"""


def test_a_page_is_read_line_by_line(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(PAGE, encoding="utf-8")
    found = snippets(page)
    assert [(one.line, one.kind) for one in found] == [
        (2, "inline"),
        (5, "python"),
        (9, "output"),
        (13, "text"),
        (19, "command"),
        (21, "command"),
        (25, "file"),
    ]
    assert found[4].words == ["vit-sae", "eval", "a", "--images", "b"]
    assert (found[6].title, found[6].text) == ("sweep.yaml", "grid: {}\n")


@pytest.mark.parametrize(
    ("shown", "printed", "same_numbers", "alike"),
    [
        ("loss 0.100", "step 3: loss 0.101  done", True, True),
        ("loss 0.100", "step 3: loss 0.105", True, False),
        ("loss 0.100", "step 3: loss 7", False, True),
        ("loss 0.100", "step 3: gain 0.1", False, False),
        ("a\nb  1,200 rows", "a b 1200 rows", True, True),
        ("−3 of test-0-001861", "-3.0 of test-0-001861", True, True),
        ("-3", "3", True, False),
        ("1 1", "1 x 1", False, False),
        ("red ring 3", "blue ring 4", False, True),
        ("score nan", "score 0.5", False, True),
        ("score nan", "score 0.5", True, False),
        ("1\n2", "1", False, False),
    ],
)
def test_what_is_printed_is_compared(shown, printed, same_numbers, alike):
    found = differences(shown, printed, same_numbers=same_numbers, any_of={"red", "blue"})
    assert (found == []) == alike


def test_values_in_comments_are_looked_up():
    block = """
rows = make(3)  # [3, d_in], shuffled
model.tokens  # 1 class, 4 patch
model.other  # what it is for
"""
    assert list(values_in_comments(block)) == [
        ("rows", "[3, d_in], shuffled"),
        ("model.tokens", "1 class, 4 patch"),
    ]
    sizes: dict[str, int] = {}
    check_value(np.zeros((3, 7)), "[3, d_in], shuffled", sizes)
    check_value([np.zeros((2, 7)), np.ones((2, 7))], "[2, d_in]", sizes)
    check_value("Layout(1 class, 4 patch)", "1 class, 4 patch", sizes)
    assert sizes == {"d_in": 7}
    for value, comment in [
        (np.zeros((4, 7)), "[3, d_in]"),
        (np.zeros((3, 8)), "[3, d_in]"),
        (np.zeros(3), "[3, d_in]"),
        ("Layout(1 class)", "1 class, 4 patch"),
    ]:
        with pytest.raises(AssertionError, match="is shown as"):
            check_value(value, comment, sizes)
