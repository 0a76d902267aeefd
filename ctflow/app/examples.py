"""Reports to begin with."""

from __future__ import annotations

_HEART = "The size of the heart is within normal limits. "
_AIRWAYS = "Trachea is in the midline and both main bronchi are open. "
_CLEAR = "There is no consolidation. No nodule or mass is seen in the lungs. "
_HEAD = _HEART + _AIRWAYS
_DRY = "No pleural effusion is seen. "

EXAMPLES: list[dict[str, str]] = [
    {
        "title": "Large pleural effusion on the right",
        "report": f"{_HEAD}{_CLEAR}There is a large right pleural effusion of about 900 ml. No "
        "pleural effusion is seen on the left. Large right pleural effusion.",
    },
    {
        "title": "Normal chest",
        "report": f"{_HEAD}{_CLEAR}{_DRY}Normal chest CT.",
    },
    {
        "title": "Pleural effusion on the left",
        "report": f"{_HEAD}{_CLEAR}There is a moderate left pleural effusion of about 500 ml. No "
        "pleural effusion is seen on the right. Moderate left pleural effusion.",
    },
    {
        "title": "Enlarged heart, pericardial effusion",
        "report": f"The heart is enlarged. There is a pericardial effusion. {_AIRWAYS}{_CLEAR}{_DRY}"
        "Cardiomegaly and pericardial effusion.",
    },
    {
        "title": "Consolidation in the right lower lobe",
        "report": f"{_HEAD}There is a consolidation in the right lower lobe. No nodule or mass is seen in "
        f"the lungs. {_DRY}Consolidation in the right lower lobe.",
    },
]
