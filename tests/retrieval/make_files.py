"""Files made for tests: honest ones, and hostile ones."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Sequence
from io import BytesIO

W = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'


def pdf(pages: Sequence[str], count: int | None = None, content: bytes | None = None) -> bytes:
    """A PDF with one line of Helvetica a page; ``count`` is what its page tree claims, ``content`` a raw stream."""
    objects: list[bytes] = [b"<< /Type /Catalog /Pages 2 0 R >>", b""]
    kids = []
    for text in pages:
        lines = "".join(f"({line}) Tj 0 -14 Td " for line in text.replace("(", "").replace(")", "").split("\n"))
        stream = content if content is not None else f"BT /F1 12 Tf 72 720 Td {lines}ET".encode("latin-1")
        packed = zlib.compress(stream)
        objects.append(b"<< /Length %d /Filter /FlateDecode >>\nstream\n%s\nendstream" % (len(packed), packed))
        kids.append(f"{len(objects) + 1} 0 R")
        objects.append(
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents %d 0 R /Resources << /Font << /F1 << "
            b"/Type /Font /Subtype /Type1 /BaseFont /Helvetica >> >> >> >>" % len(objects)
        )
    claimed = len(pages) if count is None else count
    objects[1] = f"<< /Type /Pages /Kids [{' '.join(kids)}] /Count {claimed} >>".encode()
    return pdf_of_objects(objects)


def placed_pdf(
    pages: Sequence[Sequence[tuple[float, float, float, str]]],
    extra: bytes = b"",
    more: Sequence[bytes] = (),
    catalog: bytes = b"",
) -> bytes:
    """A PDF in Helvetica of pieces of text (x, y, size, text), in this order; ``extra`` goes into every page's
    dictionary, ``catalog`` into the document's, ``more`` are objects that they may name, numbered from 3."""
    objects: list[bytes] = [b"<< /Type /Catalog /Pages 2 0 R %s >>" % catalog, b"", *more]
    kids = []
    for pieces in pages:
        drawn = "".join(f"BT /F1 {size} Tf {x} {y} Td ({text}) Tj ET\n" for x, y, size, text in pieces)
        stream = drawn.encode("cp1252")
        objects.append(b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream))
        kids.append(f"{len(objects) + 1} 0 R")
        objects.append(
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents %d 0 R %s /Resources << /Font << /F1 << "
            b"/Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >> >> >> >>"
            % (len(objects), extra)
        )
    objects[1] = f"<< /Type /Pages /Kids [{' '.join(kids)}] /Count {len(kids)} >>".encode()
    return pdf_of_objects(objects)


def form_pdf(fields: Sequence[tuple[str, str, bytes]]) -> bytes:
    """A page with a form: (label, kind of field, its value as PDF writes it) a line."""
    widget = b"<< /Type /Annot /Subtype /Widget /T (f%d) /Rect [260 %d 560 %d] %s >>"
    kinds = {
        "text": b"/FT /Tx /V %s",
        "lines": b"/FT /Tx /Ff 4096 /V %s",
        "choice": b"/FT /Ch /Ff 131072 /Opt [(none) %s] /V %s",
        "box": b"/FT /Btn /V /%s /AS /%s /AP << /N << /Yes 3 0 R /Off 3 0 R >> >>",
    }
    blank = b"<< /Type /XObject /Subtype /Form /BBox [0 0 9 9] /Length 0 >>\nstream\n\nendstream"
    widgets = []
    for number, (_, kind, value) in enumerate(fields):
        bottom = 700 - 40 * number
        pattern = kinds[kind]
        widgets.append(widget % (number, bottom - 4, bottom + 14, pattern % ((value,) * pattern.count(b"%s"))))
    named = b" ".join(b"%d 0 R" % (number + 4) for number in range(len(fields)))
    labels = [(72.0, 700.0 - 40 * number, 11.0, label) for number, (label, _, _) in enumerate(fields)]
    form = b"/AcroForm << /Fields [%s] /DA (/F1 11 Tf) >>" % named
    return placed_pdf([labels], b"/Annots [%s]" % named, [blank, *widgets], form)


def pdf_of_objects(objects: Sequence[bytes], trailer: bytes = b"") -> bytes:
    out = bytearray(b"%PDF-1.4\n")
    offsets = []
    for number, body in enumerate(objects, 1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    start = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    out += b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    out += b"trailer << /Size %d /Root 1 0 R %s >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, trailer, start)
    return bytes(out)


def encrypted_pdf() -> bytes:
    """Its key was made from a user password that nobody gives."""
    encrypt = b"<< /Filter /Standard /V 1 /R 2 /O <%s> /U <%s> /P -4 >>" % (b"11" * 32, b"22" * 32)
    objects = [b"<< /Type /Catalog /Pages 2 0 R >>", b"<< /Type /Pages /Kids [] /Count 0 >>", encrypt]
    return pdf_of_objects(objects, b"/Encrypt 3 0 R /ID [<00112233445566778899aabbccddeeff> <00>]")


def archive(entries: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file:
        for name, data in entries.items():
            file.writestr(name, data)
    return buffer.getvalue()


def docx(body: str, prolog: str = "", extra: dict[str, bytes] | None = None) -> bytes:
    """A minimal Word document whose body is WordprocessingML."""
    document = f'<?xml version="1.0" encoding="UTF-8"?>{prolog}<w:document {W}><w:body>{body}</w:body></w:document>'
    types = (
        '<?xml version="1.0"?><Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">'
        '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
        '<Override PartName="/word/document.xml" ContentType="application/vnd.openxmlformats-officedocument.'
        'wordprocessingml.document.main+xml"/></Types>'
    )
    rels = (
        '<?xml version="1.0"?><Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">'
        '<Relationship Id="rId1" Type="http://schemas.openxmlformats.org/officeDocument/2006/relationships/'
        'officeDocument" Target="word/document.xml"/></Relationships>'
    )
    return archive(
        {"[Content_Types].xml": types.encode(), "_rels/.rels": rels.encode(), "word/document.xml": document.encode()}
        | (extra or {})
    )


def paragraph(text: str) -> str:
    return f"<w:p><w:r><w:t>{text}</w:t></w:r></w:p>"


def xlsx(rows: Sequence[Sequence[str]]) -> bytes:
    from openpyxl import Workbook

    book = Workbook()
    for row in rows:
        book.active.append(list(row))
    buffer = BytesIO()
    book.save(buffer)
    return buffer.getvalue()


def pptx(slides: Sequence[str]) -> bytes:
    from pptx import Presentation

    presentation = Presentation()
    for text in slides:
        slide = presentation.slides.add_slide(presentation.slide_layouts[5])
        slide.shapes.title.text = text
    buffer = BytesIO()
    presentation.save(buffer)
    return buffer.getvalue()


def epub(chapters: Sequence[str]) -> bytes:
    container = (
        '<?xml version="1.0"?><container version="1.0" xmlns="urn:oasis:names:tc:opendocument:xmlns:container">'
        "<rootfiles>"
        '<rootfile full-path="content.opf" media-type="application/oebps-package+xml"/></rootfiles></container>'
    )
    items = "".join(
        f'<item id="c{n}" href="c{n}.xhtml" media-type="application/xhtml+xml"/>' for n in range(len(chapters))
    )
    spine = "".join(f'<itemref idref="c{n}"/>' for n in range(len(chapters)))
    opf = (
        '<?xml version="1.0"?><package xmlns="http://www.idpf.org/2007/opf" version="3.0"><metadata '
        'xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:title>T</dc:title></metadata>'
        f"<manifest>{items}</manifest><spine>{spine}</spine></package>"
    )
    return archive(
        {"mimetype": b"application/epub+zip", "META-INF/container.xml": container.encode(), "content.opf": opf.encode()}
        | {f"c{n}.xhtml": chapter.encode() for n, chapter in enumerate(chapters)}
    )


def ole(name: str = "") -> bytes:
    """The start of an old Office file; an encrypted new one holds a stream named EncryptedPackage."""
    return b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\x00" * 504 + name.encode("utf-16-le") + b"\x00" * 512


LAUGHS = "<!DOCTYPE x [" + '<!ENTITY a0 "ha">' + "".join(
    f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 12)
) + "]>"  # fmt: skip
EXTERNAL = '<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]>'


def lying_zip() -> bytes:
    """A Word document whose directory says that its body is 10 bytes long; it is 200 MB."""
    data = bytearray(docx(paragraph("x") * 10))
    big = zlib.compressobj(9, zlib.DEFLATED, -15)
    body = big.compress(b" " * 200_000_000) + big.flush()
    name = b"word/document.xml"
    local = struct.pack("<4sHHHHHIIIHH", b"PK\x03\x04", 20, 0, 8, 0, 0, 0, len(body), 10, len(name), 0) + name + body
    central = struct.pack(
        "<4sHHHHHHIIIHHHHHII", b"PK\x01\x02", 20, 20, 0, 8, 0, 0, 0, len(body), 10, len(name), 0, 0, 0, 0, 0, 0
    )
    end = struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 1, 1, len(central) + len(name), len(local), 0)
    del data
    return local + central + name + end


def hostile() -> dict[str, bytes]:
    """Name → content of files that want to hurt their reader."""
    deep = 20_000
    return {
        "bomb.docx": docx("", extra={"word/big.xml": b"\0" * 300_000_000}),
        "lying.docx": lying_zip(),
        "many.docx": docx(paragraph("x"), extra={f"junk/{n}": b"" for n in range(10_001)}),
        "laughs.docx": docx(paragraph("&a11;"), LAUGHS),
        "quadratic.docx": docx(paragraph("&a;" * 50_000), f'<!DOCTYPE x [<!ENTITY a "{"x" * 50_000}">]>'),
        "external.docx": docx(paragraph("&e;"), EXTERNAL),
        "deep.docx": docx("<w:tbl>" * deep + "</w:tbl>" * deep),
        "traversal.docx": docx(paragraph("safe"), extra={"../../../../tmp/folio-evil": b"evil"}),
        "noparts.docx": archive({"word/document.xml": b"<"}),
        "noparts.pptx": archive({"ppt/presentation.xml": b"<p/>"}),
        "noparts.xlsx": archive({"xl/workbook.xml": b"<workbook/>"}),
        "noparts.epub": archive({"META-INF/container.xml": b"<container/>"}),
        "deep.epub": epub(["<html><body>" + "<div>" * deep + "x" + "</div>" * deep + "</body></html>"]),
        "laughs.epub": epub([f'<?xml version="1.0"?>{LAUGHS}<html><body>&a11;</body></html>']),
        "cut.xlsx": xlsx([["a"]])[:-40],
        "deep.html": b"<div>" * 500_000 + b"x",
        "open.html": b"<a " * 500_000,
        "attributes.html": b"<p " + b"a=1 " * 500_000 + b">x</p>",
        "entities.html": b"&#x1f4a9;&notanentity" * 200_000,
        "comment.html": b"<p>x</p><!-- " + b"-" * 2_000_000,
        "script.html": b"<script>alert(1)</script>",
        "cut.pdf": pdf(["hello"])[:120],
        "noise.pdf": b"%PDF-1.7\n" + bytes(range(256)) * 400,
        "encrypted.pdf": encrypted_pdf(),
        "endless.pdf": pdf(["hello"], count=100_000_000),
        "loop.pdf": pdf_of_objects(
            [b"<< /Type /Catalog /Pages 2 0 R >>", b"<< /Type /Pages /Kids [2 0 R 2 0 R] /Count 9999999 >>"]
        ),
        "stream.pdf": pdf(["x"], content=b"BT /F1 12 Tf " + b"(spam) Tj " * 30_000_000 + b"ET"),
        "arrays.pdf": pdf_of_objects([b"[" * 1_000_000, b"<< /Type /Pages /Kids [] /Count 0 >>"]),
        "self.pdf": pdf_of_objects([b"1 0 R", b"2 0 R"]),
        "blank.pdf": pdf([""]),
        "comments.txt": b"<!---->" * 64,
        "comments": b"<!---->" * 64,
        "meta.html": b"<meta " * 400 + b"charset" * 200 + b" " * 300 + b"<p>x</p>",
        "breaks.txt": b"x.\r\n" + b" \r\n" * 300_000 + b"*" * 1_000_000 + b"." * 1_000_000,
        "polyglot.txt": b"plain at first\n" + pdf(["hello"]),
        "picture.html": b"GIF89a<script>alert(1)</script>",
        "program.txt": b"\x7fELF" + b"\0" * 100,
        "picture.md": b"\x89PNG\r\n\x1a\n" + b"\0" * 100,
        "packed.txt": b"\x1f\x8b\x08" + b"\0" * 100,
        "zip.pdf": archive({"a": b"b"}),
        "text.pdf": b"just text",
        "pdf.docx": pdf(["hello"]),
        "encrypted.docx": ole("EncryptedPackage"),
        "old.doc": ole(),
        "empty.txt": b"",
        "blank.txt": b" \n\t\r\n" * 100_000,
        "nul.txt": b"a\0b" * 1000,
        "odd.txt": b"\xff\xfea\0b",
        "strange.xyz": b"text of no known kind",
        "wide.csv": b"," * 300_000 + b"\n1",
        "quote.csv": b'a,b\n"' + b"x\n" * 500_000,
        "deep.eml": b"Subject: x\n" + b"".join(
            b"Content-Type: multipart/mixed; boundary=b%d\n\n--b%d\n" % (n, n) for n in range(5_000)
        ) + b"\nx",
        "bare.eml": b"no headers at all",
    }  # fmt: skip
