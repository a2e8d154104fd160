"""The command line: `folio`, one file a subject. Heavy imports happen inside the commands, so that help is quick."""
