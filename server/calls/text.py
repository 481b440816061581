"""Normalise the text of requests, and define blank text."""

import re
import unicodedata

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

# The characters that show nothing, as the contract's rules have them (`…not_blank` in task.proto):
# white space, control and format characters, and what Unicode ignores by default, such as variation
# selectors; also letters and symbols without ink (Hangul fillers, the blank Braille pattern).
INVISIBLE = (
    "\\u0000-\\u0020\\u007f-\\u00a0\\u00ad\\u034f\\u0600-\\u0605\\u061c\\u06dd\\u070f\\u0890-\\u0891"
    "\\u08e2\\u115f-\\u1160\\u1680\\u17b4-\\u17b5\\u180b-\\u180f\\u2000-\\u200f\\u2028-\\u202f"
    "\\u205f-\\u206f\\u2800\\u3000\\u3164\\ufe00-\\ufe0f\\ufeff\\uffa0\\ufff0-\\ufffb"
    "\\U000110bd\\U000110cd\\U00013430-\\U0001343f\\U0001bca0-\\U0001bca3\\U0001d173-\\U0001d17a"
    "\\U000e0000-\\U000e0fff"
)
_VISIBLE = re.compile(f"[^{INVISIBLE}]")


def is_blank(text: str) -> bool:
    """Return whether the text has no visible character."""
    return _VISIBLE.search(text) is None


def normalise(message: Message) -> None:
    """Convert each text in a message to Unicode's normal form C (AIP-210): one spelling."""
    for field, value in message.ListFields():
        if field.type == FieldDescriptor.TYPE_STRING:
            if not field.is_repeated:
                if not value.isascii():
                    setattr(message, field.name, unicodedata.normalize("NFC", value))
            elif not all(map(str.isascii, value)):
                value[:] = [unicodedata.normalize("NFC", text) for text in value]
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            for item in value if field.is_repeated else (value,):
                normalise(item)
