package main

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/term"
)

// What the command prints: tables that fit the terminal, or JSON. Names that strangers chose never reach the terminal with
// characters that it would obey.

// clean replaces what a terminal might obey, or what would break a line.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r != ' ' && !unicode.IsPrint(r) {
			return '�'
		}
		return r
	}, s)
}

// print writes v as JSON, indented.
func (a *app) print(v any) error {
	e := json.NewEncoder(a.out)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// width is that of the terminal; 0: it is none, and nothing is cut.
func (a *app) width() int {
	f, ok := a.out.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return forcedWidth()
	}
	if n := forcedWidth(); n > 0 {
		return n
	}
	w, _, err := term.GetSize(int(f.Fd()))
	if err != nil || w < 20 {
		return 80
	}
	return w
}

// forcedWidth is what COLUMNS says.
func forcedWidth() int {
	n, err := strconv.Atoi(os.Getenv("COLUMNS"))
	if err != nil || n < 20 {
		return 0
	}
	return n
}

// colored reports that words may have a color: on a terminal, unless NO_COLOR is set.
func (a *app) colored() bool {
	f, ok := a.out.(*os.File)
	return ok && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb" && term.IsTerminal(int(f.Fd()))
}

const gap = "  "

// table prints rows under a head. Where the terminal is too narrow the widest columns are cut, the first one last: it is what other
// commands take.
func (a *app) table(head []string, rows [][]string) {
	widths := make([]int, len(head))
	for i, h := range head {
		widths[i] = utf8.RuneCountInString(h)
	}
	for _, row := range rows {
		for i := range row {
			row[i] = clean(row[i])
			widths[i] = max(widths[i], utf8.RuneCountInString(row[i]))
		}
	}
	if w := a.width(); w > 0 {
		fit(widths, w)
	}
	line := func(cells []string) {
		var b strings.Builder
		for i, c := range cells {
			c = cut(c, widths[i])
			b.WriteString(c)
			if i < len(cells)-1 {
				b.WriteString(strings.Repeat(" ", widths[i]-utf8.RuneCountInString(c)) + gap)
			}
		}
		fmt.Fprintln(a.out, strings.TrimRight(b.String(), " "))
	}
	line(head)
	for _, row := range rows {
		line(row)
	}
}

// fit narrows the widest columns until their sum fits.
func fit(widths []int, w int) {
	const least = 6
	room := w - len(gap)*(len(widths)-1)
	for {
		sum := 0
		for _, n := range widths {
			sum += n
		}
		if sum <= room {
			return
		}
		widest := slices.Index(widths, slices.Max(widths))
		if widest == 0 && len(widths) > 1 {
			if i := 1 + slices.Index(widths[1:], slices.Max(widths[1:])); widths[i] > least {
				widest = i
			}
		}
		if widths[widest] <= least {
			return
		}
		widths[widest]--
	}
}

func cut(s string, n int) string {
	if utf8.RuneCountInString(s) <= n {
		return s
	}
	r := []rune(s)
	return string(r[:max(n-1, 0)]) + "…"
}

// facts of one thing, a name and a value a line. Empty values are left out.
func (a *app) list(pairs ...string) {
	wide := 0
	for i := 0; i < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			wide = max(wide, len(pairs[i]))
		}
	}
	for i := 0; i < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			fmt.Fprintf(a.out, "%-*s  %s\n", wide, pairs[i], clean(pairs[i+1]))
		}
	}
}

// at is a time as people read it, in UTC.
func at(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format("2006-01-02 15:04:05Z")
}

// or is s, or what stands for its absence.
func or(s, none string) string {
	if s == "" {
		return none
	}
	return s
}

// more tells on the error output that a listing was cut.
func (a *app) more(shown int, next bool) {
	if next && !a.json {
		fmt.Fprintf(a.err, "The first %d are shown; --limit 0 shows all.\n", shown)
	}
}

// note tells what was done, on the error output, so that the output holds what was asked for.
func (a *app) note(format string, args ...any) {
	if !a.json {
		fmt.Fprintln(a.err, clean(fmt.Sprintf(format, args...)))
	}
}

// when reads a time: RFC 3339, a day, or how long ago, such as 2h.
func when(s string, now time.Time) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04", "2006-01-02"} {
		if t, err := time.Parse(layout, s); err == nil {
			return t, nil
		}
	}
	if d, err := length(s); err == nil {
		return now.Add(-d), nil
	}
	return time.Time{}, usage("It is 2026-03-01, 2026-03-01T14:00:00Z, or how long ago: 90m, 12h, 7d.", "%q is no time", s)
}

// length reads how long: as time.ParseDuration does, and days.
func length(s string) (time.Duration, error) {
	if days, ok := strings.CutSuffix(s, "d"); ok {
		n, err := strconv.ParseFloat(days, 64)
		if err == nil && n >= 0 && n < 1e5 {
			return time.Duration(n * 24 * float64(time.Hour)), nil
		}
	}
	d, err := time.ParseDuration(s)
	if err == nil && d < 0 {
		err = fmt.Errorf("negative")
	}
	if err != nil {
		return 0, usage("It is 90m, 12h or 7d.", "%q is no length of time", s)
	}
	return d, nil
}
