package main

import (
	"io"
	"os"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"
)

// bar shows how far something is, on the error output where that is a terminal. total is -1 where it is not known.
func (a *app) bar(total int64, what string, bytes bool) *progressbar.ProgressBar {
	var w io.Writer = io.Discard
	if f, ok := a.err.(*os.File); ok && !a.json && os.Getenv("TERM") != "dumb" && term.IsTerminal(int(f.Fd())) {
		w = f
	}
	return progressbar.NewOptions64(total, progressbar.OptionSetWriter(w), progressbar.OptionSetDescription(what), progressbar.OptionShowBytes(bytes),
		progressbar.OptionShowCount(), progressbar.OptionThrottle(100*time.Millisecond), progressbar.OptionClearOnFinish(), progressbar.OptionFullWidth(),
		progressbar.OptionEnableColorCodes(false), progressbar.OptionSetPredictTime(total > 0))
}
