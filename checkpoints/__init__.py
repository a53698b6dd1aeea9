"""The shipped reference checkpoints, opened by bare name: `dermaudit.load_model("phantom-vit")`.

Each folder is in open_clip's local-dir format, with its card. Large checkpoints are not in git.
"""
