"""search in words, tags in any case

Revision: 0004, after 0003.

Adds two columns that PostgreSQL derives from others: `search`, what searches look through, and
`tag_keys`, the tags in lower case. Adding them rewrites the table, and nothing reads or writes
tasks meanwhile. The indexes that the build before searched by are dropped: kept beside the new
ones, they would have to be kept up to date by every write.
"""

from alembic import op

revision = "0004"
down_revision = "0003"
oldest_build = "0004"

# PostgreSQL's parser makes one token of a path, a host, an address, a signed number or a tag if
# these characters stand in it; all other ASCII punctuation separates words anyway.
_JOINING = "<>&+./@_~-"

# What is neither letter, digit nor combining mark (Unicode 14), beyond ASCII. Spelled out, for
# PostgreSQL's character classes depend on the locale of the database.
_SEPARATORS = """
0080-00a9 00ab-00b1 00b4 00b6-00b8 00bb 00bf 00d7 00f7 02c2-02c5 02d2-02df 02e5-02eb 02ed
02ef-02ff 0375 037e 0384-0385 0387 03f6 0482 055a-055f 0589-058f 05be 05c0 05c3 05c6 05f3-060f
061b-061f 066a-066d 06d4 06dd-06de 06e9 06fd-06fe 0700-070f 07f6-07f9 07fe-07ff 0830-083e 085e
0888 0890-0891 08e2 0964-0965 0970 09f2-09f3 09fa-09fb 09fd 0a76 0af0-0af1 0b70 0bf3-0bfa 0c77
0c7f 0c84 0d4f 0d79 0df4 0e3f 0e4f 0e5a-0e5b 0f01-0f17 0f1a-0f1f 0f34 0f36 0f38 0f3a-0f3d 0f85
0fbe-0fc5 0fc7-0fda 104a-104f 109e-109f 10fb 1360-1368 1390-1399 1400 166d-166e 1680 169b-169c
16eb-16ed 1735-1736 17d4-17d6 17d8-17db 1800-180a 180e 1940-1945 19de-19ff 1a1e-1a1f 1aa0-1aa6
1aa8-1aad 1b5a-1b6a 1b74-1b7e 1bfc-1bff 1c3b-1c3f 1c7e-1c7f 1cc0-1cc7 1cd3 1fbd 1fbf-1fc1
1fcd-1fcf 1fdd-1fdf 1fed-1fef 1ffd-206f 207a-207e 208a-208e 20a0-20c0 2100-2101 2103-2106
2108-2109 2114 2116-2118 211e-2123 2125 2127 2129 212e 213a-213b 2140-2144 214a-214d 214f
218a-244a 249c-24e9 2500-2775 2794-2bff 2ce5-2cea 2cf9-2cfc 2cfe-2cff 2d70 2e00-2e2e 2e30-3004
3008-3020 3030 3036-3037 303d-303f 309b-309c 30a0 30fb 3190-3191 3196-319f 31c0-31e3 3200-321e
322a-3247 3250 3260-327f 328a-32b0 32c0-33ff 4dc0-4dff a490-a4c6 a4fe-a4ff a60d-a60f a673 a67e
a6f2-a716 a720-a721 a789-a78a a828-a82b a836-a839 a874-a877 a8ce-a8cf a8f8-a8fa a8fc a92e-a92f
a95f a9c1-a9cd a9de-a9df aa5c-aa5f aa77-aa79 aade-aadf aaf0-aaf1 ab5b ab6a-ab6b abeb e000-f8ff
fb29 fbb2-fbc2 fd3e-fd4f fdcf fdfc-fdff fe10-fe19 fe30-fe6b feff-ff0f ff1a-ff20 ff3b-ff40
ff5b-ff65 ffe0-fffd 10100-10102 10137-1013f 10179-10189 1018c-101fc 1039f 103d0 1056f 10857
10877-10878 1091f 1093f 10a50-10a58 10a7f 10ac8 10af0-10af6 10b39-10b3f 10b99-10b9c 10ead
10f55-10f59 10f86-10f89 11047-1104d 110bb-110c1 110cd 11140-11143 11174-11175 111c5-111c8 111cd
111db 111dd-111df 11238-1123d 112a9 1144b-1144f 1145a-1145d 114c6 115c1-115d7 11641-11643
11660-1166c 116b9 1173c-1173f 1183b 11944-11946 119e2 11a3f-11a46 11a9a-11a9c 11a9e-11aa2
11c41-11c45 11c70-11c71 11ef7-11ef8 11fd5-11fff 12470-12474 12ff1-12ff2 13430-13438 16a6e-16a6f
16af5 16b37-16b3f 16b44-16b45 16e97-16e9a 16fe2 1bc9c 1bc9f-1bca3 1cf50-1d164 1d16a-1d16c
1d173-1d17a 1d183-1d184 1d18c-1d1a9 1d1ae-1d241 1d245 1d300-1d356 1d6c1 1d6db 1d6fb 1d715 1d735
1d74f 1d76f 1d789 1d7a9 1d7c3 1d800-1d9ff 1da37-1da3a 1da6d-1da74 1da76-1da83 1da85-1da8b 1e14f
1e2ff 1e95e-1e95f 1ecac 1ecb0 1ed2e 1eef0-1f0f5 1f10d-1fbca e0001-e007f f0000-10fffd
"""

# Han, Hiragana, Katakana, Thai, Lao, Myanmar and Khmer have no spaces between words: the letters,
# each of which becomes a word, and the marks that belong to the letter before them.
_LETTERS = """
0e01-0e30 0e32-0e33 0e40-0e46 0e81-0eb0 0eb2-0eb3 0ebd-0ec6 0edc-0edf 1000-102a 103f 1050-1055
1780-17b3 2e80-2fdf 3005-3007 3021-3029 3038-303b 3041-3096 309d-309f 30a1-30fa 30fc-30ff 31f0-31ff
3400-4dbf 4e00-9fff f900-faff ff66-ff9f 1b000-1b16f 20000-323af
"""
_MARKS = """
0e31 0e34-0e3a 0e47-0e4e 0eb1 0eb4-0ebc 0ec8-0ece 102b-103e 1056-1059 17b4-17d3 3099-309a
"""


def _class(ranges: str) -> str:
    """The code points as the inside of a bracket expression of PostgreSQL's."""
    return "".join(
        "-".join(f"\\U{int(end, 16):08x}" for end in span.split("-")) for span in ranges.split()
    )


# The bodies of these functions are parsed here, once: they mean the same under any search_path,
# also under the empty one of a dump that is restored.
_TASK_WORDS = f"""
CREATE FUNCTION task_words(content text) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE
    WHEN octet_length(content) = char_length(content)
    THEN regexp_replace(content, '[{_JOINING}]+', ' ', 'g')
    ELSE regexp_replace(
        regexp_replace(content COLLATE "C", '[{_class(_SEPARATORS)}{_JOINING}]+', ' ', 'g'),
        '[{_class(_LETTERS)}][{_class(_MARKS)}]*', ' \\& ', 'g'
    )
END
"""
# The title's words have the weight A. Between the title and the description a position is left
# free, so that no phrase spans both.
_TASK_SEARCH = """
CREATE FUNCTION task_search(title text, description text) RETURNS tsvector
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN ts_delete(
    setweight(to_tsvector('simple'::regconfig, task_words(title)), 'A')
        || '|:1'::tsvector
        || to_tsvector('simple'::regconfig, task_words(description)),
    '|'
)
"""
_TASK_TAG_KEYS = """
CREATE FUNCTION task_tag_keys(tags text[]) RETURNS text[] LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN ARRAY(SELECT lower(tag) FROM unnest(tags) AS tag)
"""
_COLUMNS = """
-- squawk-ignore-file require-concurrent-index-deletion, require-concurrent-index-creation
-- squawk-ignore-file adding-field-with-default -- released before this was checked
DROP INDEX idx_task_search, idx_task_tags;
ALTER TABLE tasks
    ADD search tsvector NOT NULL GENERATED ALWAYS AS (task_search(title, description)) STORED,
    ADD tag_keys text[] NOT NULL GENERATED ALWAYS AS (task_tag_keys(tags)) STORED;
CREATE INDEX idx_task_search ON tasks USING gin (search);
CREATE INDEX idx_task_tags ON tasks USING gin (tag_keys);
CREATE INDEX idx_task_due_date_desc ON tasks (
    (coalesce(due_date, '-infinity'::timestamp with time zone)), created_at, id
);
"""


def upgrade() -> None:
    for function in (_TASK_WORDS, _TASK_SEARCH, _TASK_TAG_KEYS):
        op.execute(function.replace(":", r"\:"))
    op.execute(_COLUMNS)


def downgrade() -> None:
    op.execute("DROP INDEX idx_task_due_date_desc")
    op.execute("ALTER TABLE tasks DROP tag_keys, DROP search")
    op.execute("DROP FUNCTION task_tag_keys, task_search, task_words")
    op.execute("CREATE INDEX idx_task_tags ON tasks USING gin (tags)")
    op.execute(
        "CREATE INDEX idx_task_search ON tasks USING gin (to_tsvector('simple'::regconfig, "
        "translate((title || ' '::text) || description, '<>'::text, '  '::text)))"
    )
