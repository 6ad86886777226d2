"""Where labelled images come from, one file per source; each gives `Images` or one clear line."""
