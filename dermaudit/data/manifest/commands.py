"""The commands `data convert` and `data check`. Nothing heavy is imported until one of them runs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from dermaudit.console import say, table

_LAYOUTS = "auto, or the name of a layout (dermaudit data convert --help lists them)"
_SHOWN = 20  # findings of one kind that are printed
# Kinds with the same message for every row: one line with a count (--json lists every row).
_ONE_FACT = {
    "blank_label": "rows without a label",
    "exif_rotated": "images stored turned and set upright",
    "not_rgb": "images converted to RGB",
    "unlisted": "images that no row names",
}


MergeLabels = Annotated[
    list[str] | None,
    typer.Option("--merge-labels", help="old=new: one class under two spellings; may be repeated"),
]


def convert(
    src: Annotated[Path, typer.Argument(help="a folder, or a .csv / .parquet / .jsonl table")],
    out: Annotated[Path, typer.Option(help="folder for the data set")],
    layout: Annotated[str, typer.Option(help=_LAYOUTS)] = "auto",
    where: Annotated[
        str | None, typer.Option(help="only these rows, as SQL: \"licence == 'CC0-1.0'\"")
    ] = None,
    link: Annotated[bool, typer.Option("--link/--copy", help="link to the images or copy")] = False,
    merge_labels: MergeLabels = None,
    strict: Annotated[bool, typer.Option(help="stop at the first bad row or image")] = False,
    force: Annotated[bool, typer.Option(help="replace the data set in --out")] = False,
    dry_run: Annotated[bool, typer.Option(help="show what would be done, write nothing")] = False,
) -> dict[str, Any]:
    """Make a data set with one split (train / val / test 70 / 10 / 20 by group) in a folder.

    Columns that a layout needs:

    native: image

    dermoscopy: image_id, dx, group_id, has_artifact_annotation and those of its artifacts

    skincon: ImageID, a 0/1 column a concept, 'Do not consider this image'

    bcn20000: bcn_filename, diagnosis, lesion_id, age_approx, sex, anatom_site_general

    ddi: DDI_file, disease, malignant, skin_tone (12, 34, 56)

    derm1m: filename, caption, disease_label

    derm7pt: derm, case_num, diagnosis and the attributes of the seven-point checklist

    dermfm-zeroshot: image_path, label (a number), diag (its name)

    fitzpatrick17k: md5hash, label, three_partition_label, fitzpatrick_scale (or fitzpatrick)

    hf-metadata: file_name, and a caption or text

    make: filename, caption, ontology_caption, visual_concept_caption, subcaption_1 …,
    sub_caption_mask, knowledge_masks

    pad-ufes-20: img_id, diagnostic, patient_id (images in imgs_part_1 … imgs_part_3)

    scin: case_id, image_1_path … image_3_path (and scin_labels.csv)

    concept-meta: ImageID, a 0/1 column a concept (images in final_images/)

    isic: image (or image_id, image_name, isic_id), and MEL, NV, … of 0/1 or diagnosis (or dx,
    diagnosis_1 … diagnosis_3)
    """
    from .convert import check_out, plan_conversion, summary, write
    from .labels import describe, spellings

    plan = plan_conversion(src, layout, out, where, strict=strict, merges=merge_labels or [])
    for counts in spellings(plan.manifest.labels):
        say("  warning: {}\n    {}".format(*describe(counts)))
    for remark in plan.raw.remarks:
        say(remark)
    if not dry_run:
        check_out(out, plan.identity(), force)
    if dry_run:
        counts = summary(plan.manifest)
        _print_counts(f"{out}: would hold {plan.manifest.n} images", counts)
        for one in plan.raw.skipped[:_SHOWN]:
            say(f"  would be skipped: {plan.raw.describe(one)}")
        return {
            "out": str(out),
            "layout": plan.raw.layout,
            "dry_run": True,
            **counts,
            "n_skipped": len(plan.raw.skipped),
        }
    manifest, skipped = write(plan, out, link=link, strict=strict)
    counts = summary(manifest)
    _print_counts(f"{out}: {manifest.n} images ({plan.raw.layout})", counts)
    if skipped:
        table(
            f"{len(skipped)} images skipped (all of them in {out / 'skipped.parquet'})",
            ("image", "reason"),
            [(s["image"] or "", s["reason"]) for s in skipped[:20]],
        )
    return {
        "out": str(out),
        "layout": plan.raw.layout,
        "dry_run": False,
        **counts,
        "n_skipped": len(skipped),
        "skipped": skipped,
        "manifest_sha256": manifest.sha256(),
    }


def check(
    path: Annotated[Path, typer.Argument(help="a data set: folder or table")],
    layout: Annotated[str, typer.Option(help=_LAYOUTS)] = "auto",
    merge_labels: MergeLabels = None,
) -> dict[str, Any]:
    """Name what is wrong with a data set, row by row, and which images would be skipped."""
    from .check import LEVELS, Unusable, check_data

    result = check_data(path, layout, merges=merge_labels or [])
    for remark in result["remarks"]:
        say(remark)
    for level, meaning in LEVELS.items():
        findings = [f for f in result["findings"] if f["level"] == level]
        if not findings:
            continue
        say(f"\n{level}: {meaning} ({len(findings)})")
        per_kind: Counter[str] = Counter()
        total = Counter(finding["kind"] for finding in findings)
        for finding in findings:
            per_kind[finding["kind"]] += 1
            if finding["kind"] in _ONE_FACT and total[finding["kind"]] > 1:
                if per_kind[finding["kind"]] == 1:
                    n = total[finding["kind"]]
                    say(
                        f"  {finding['kind']:<32} {n} {_ONE_FACT[finding['kind']]}; the first: "
                        f"{finding['message']}"
                    )
                continue
            if per_kind[finding["kind"]] <= _SHOWN:
                say(f"  {finding['kind']:<32} {finding['message']}")
                if finding["hint"]:
                    say(f"  {'':<32}   {finding['hint']}")
        for kind, n in per_kind.items():
            if n > _SHOWN and kind not in _ONE_FACT:
                say(f"  {kind:<32} ... and {n - _SHOWN} more (--json has them all)")
    counted = ", ".join(f"{n} {kind}" for kind, n in result["counts"].items()) or "nothing is wrong"
    summary_line = (
        f"{path}: {result['n_usable']} of {result['n_rows']} images can be used; {counted}"
    )
    if not result["usable"]:
        raise Unusable(summary_line, result)
    say(f"\n{summary_line}")
    return result


def _print_counts(title: str, counts: dict[str, Any]) -> None:
    from .convert import split_warning

    splits = ", ".join(f"{name} {n}" for name, n in counts["splits"].items())
    say(f"{title}\n  {counts['n_groups']} groups; {splits}")
    warning = split_warning(counts["splits"])
    if warning:
        say(f"  warning: {warning}")
    if counts["labels"]:
        rows = [(label or "(blank)", n) for label, n in counts["labels"].items()]
        table("Labels", ("label", "images"), rows)
    if counts["truth"]:
        table(
            "Truth (blank is unknown)",
            ("word", "type", "present", "absent", "unknown"),
            [(name, *row.values()) for name, row in counts["truth"].items()],
        )
