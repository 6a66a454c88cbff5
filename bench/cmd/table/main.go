// Table measures this module and its peers side by side and prints the Markdown table of docs/performance.md:
//
//	go run ./bench/cmd/table                       # from the project's folder; some minutes
//	go run ./bench/cmd/table -rounds 20 -only Validate
//
// All sides of a group run in one process, in turn, a few milliseconds each, in many rounds. A time is the median of the
// rounds; a ratio is the median of each round's own ratio, so that a slow moment of the machine, which hits both sides, leaves
// it alone. How long a revocation takes to reach another process is one benchmark for each engine that is installed, and so is
// what a service does a second on it, which a table of its own shows. Where something fails the rest is shown, the failure is printed behind
// it, and the exit status is 1.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
)

func main() {
	log.SetFlags(0)
	rounds := flag.Int("rounds", 60, "rounds")
	only := flag.String("only", "", "which groups, a regular expression; empty: all")
	many := flag.Int("sessions", 20_000, "sessions in the store of each engine, for the table of engines")
	flag.Parse()
	pick, err := regexp.Compile(*only)
	if err != nil {
		log.Fatal(err)
	}
	dir, err := folder()
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s/%s, %d cores, %s, %s; medians of %d rounds, all sides in turn\n\n", runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), runtime.Version(), time.Now().Format("2006-01-02"), *rounds)
	sides, err := measure(dir, *only, *rounds)
	revoke, service := pick.MatchString("RevokeToRefuse"), pick.MatchString("Service")
	if len(sides) == 0 && err == nil && !revoke && !service {
		log.Fatalf("no group matches %q", *only)
	}
	if len(sides) > 0 || revoke { // whose rows are of the same table
		print(os.Stdout, sides)
	}
	failed := false
	report := func(err error) {
		if err != nil {
			failed = true
			fmt.Fprintln(os.Stderr, err)
		}
	}
	report(err)
	if revoke {
		report(revocations(os.Stdout, dir))
	}
	if service {
		report(engines(os.Stdout, dir, *many))
	}
	if failed {
		os.Exit(1)
	}
}

// folder is where the benchmarks are: this module's.
func folder() (string, error) {
	out, err := exec.Command("go", "list", "-f", "{{.Dir}}", "github.com/apitoken-go/apitoken/bench").Output()
	if err != nil {
		return "", fmt.Errorf("the bench module is not here: run this in the project's folder: %w", err)
	}
	return filepath.Clean(strings.TrimSpace(string(out))), nil
}

// side is what the test prints of one row.
type side struct {
	Group, Row string
	NS         []float64
	Allocs     float64
}

func measure(dir, only string, rounds int) ([]side, error) {
	out, failed := run(dir, "-v", "-run", "^TestSideBySide$", "-count", "1", "-timeout", "2h", ".", "-rounds", strconv.Itoa(rounds), "-only", only)
	var sides []side
	for line := range bytes.Lines(out) {
		text, ok := bytes.CutPrefix(line, []byte("side: "))
		if !ok {
			continue
		}
		var s side
		if err := json.Unmarshal(text, &s); err != nil {
			return nil, err
		}
		sides = append(sides, s)
	}
	return sides, failed
}

// run returns what go test prints, and an error with what it says of each failure. What was measured before one counts.
func run(dir string, args ...string) ([]byte, error) {
	cmd := exec.Command("go", append([]string{"test"}, args...)...)
	cmd.Dir = dir
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("go test: %w\n%s", err, failures(out))
	}
	return out, err
}

// failures are the lines that say what failed, or all that was printed where none does.
func failures(out []byte) string {
	var b strings.Builder
	for line := range bytes.Lines(out) {
		if text := bytes.TrimSpace(line); bytes.HasPrefix(text, []byte("--- FAIL")) || bytes.HasPrefix(line, []byte(" ")) || bytes.HasPrefix(text, []byte("panic:")) {
			b.Write(line)
		}
	}
	if b.Len() == 0 {
		return string(out)
	}
	return b.String()
}

// who is the implementation that a row's name begins with; what is the rest.
func (s side) who() (who, what string) {
	who, what, _ = strings.Cut(s.Row, "/")
	return who, strings.ReplaceAll(what, "/", " ")
}

// other is the side of another implementation for the same thing. Of a second sight the bare check is the first one's.
func other(sides []side, s side, who string) (side, bool) {
	_, what := s.who()
	for _, want := range []string{what, strings.Replace(what, "repeat", "first", 1), ""} {
		for _, o := range sides {
			if w, x := o.who(); o.Group == s.Group && w == who && x == want {
				return o, true
			}
		}
	}
	return side{}, false
}

func print(w io.Writer, sides []side) {
	fmt.Fprintln(w, "| what | who | time | to bare | to apitoken | allocations |")
	fmt.Fprintln(w, "|---|---|---:|---:|---:|---:|")
	for _, s := range sides {
		who, what := s.who()
		allocs := ""
		if s.Allocs >= 0 {
			allocs = strconv.FormatFloat(s.Allocs, 'f', 0, 64)
		}
		fmt.Fprintf(w, "| %s | %s | %s | %s | %s | %s |\n", strings.TrimSpace(strings.ReplaceAll(s.Group, "/", " ")+" "+what), who, unit(median(s.NS)), ratio(sides, s, "raw"), ratio(sides, s, "apitoken"), allocs)
	}
}

// ratio is how many times as long s takes as who does, in the same round.
func ratio(sides []side, s side, who string) string {
	base, ok := other(sides, s, who)
	if !ok {
		return ""
	}
	each := make([]float64, min(len(s.NS), len(base.NS)))
	for i := range each {
		each[i] = s.NS[i] / base.NS[i]
	}
	r := median(each)
	if r < 0.01 {
		return fmt.Sprintf("1/%.0f", 1/r)
	}
	return fmt.Sprintf("%.2f", r)
}

func median(v []float64) float64 { return slices.Sorted(slices.Values(v))[len(v)/2] }

func unit(ns float64) string {
	switch {
	case ns < 1000:
		return fmt.Sprintf("%.0f ns", ns)
	case ns < 1e6:
		return fmt.Sprintf("%.1f µs", ns/1e3)
	}
	return fmt.Sprintf("%.2f ms", ns/1e6)
}

var line = regexp.MustCompile(`^BenchmarkRevokeToRefuse/(\S+?)(?:-\d+)?\s+\d+\s.*?([\d.]+) µs-p50\s+([\d.]+) µs-p99`)

// revocations adds how long an acknowledged revocation takes until another process refuses.
func revocations(w io.Writer, dir string) error {
	out, err := run(dir, "-run", "^$", "-bench", "^BenchmarkRevokeToRefuse$", "-benchtime", "300x", ".")
	for s := bufio.NewScanner(bytes.NewReader(out)); s.Scan(); {
		if m := line.FindStringSubmatch(s.Text()); m != nil {
			fmt.Fprintf(w, "| RevokeToRefuse %s | apitoken | %s µs, p99 %s µs | | | |\n", m[1], m[2], m[3])
		}
	}
	return err
}

var (
	perEngine = regexp.MustCompile(`^Benchmark(Service|Login|Beside)/(\S+?)/(\S+?)(?:-\d+)?\s+\d+\s(.*)`)
	metric    = regexp.MustCompile(`([\d.e+-]+) (\S+)`)
)

// figures are what one engine reports: by benchmark and row, as in "Service/login", and then by unit.
type figures map[string]map[string]float64

// engines prints what a service does a second on each engine, as 64 callers see it, how long the slowest hundredth takes, and what is
// left of the logins beside other work. Limits are the rates of logins under a limit of sessions for one subject, as parts of the rate
// without, beside 20,000 sessions of others: of subjects below it, and of those at it, where each login ends another session.
func engines(w io.Writer, dir string, sessions int) error {
	if err := os.Setenv("APITOKEN_BENCH_SESSIONS", strconv.Itoa(sessions)); err != nil {
		return err
	}
	out, err := run(dir, "-run", "^$", "-bench", "^Benchmark(Service|Login|Beside)$", "-benchtime", "3s", "-timeout", "2h", ".")
	of := map[string]figures{}
	var names []string
	for s := bufio.NewScanner(bytes.NewReader(out)); s.Scan(); {
		m := perEngine.FindStringSubmatch(s.Text())
		if m == nil {
			continue
		}
		if of[m[2]] == nil {
			of[m[2]] = figures{}
			names = append(names, m[2])
		}
		row := map[string]float64{}
		for _, x := range metric.FindAllStringSubmatch(m[4], -1) {
			if v, bad := strconv.ParseFloat(x[1], 64); bad == nil {
				row[x[2]] = v
			}
		}
		of[m[2]][m[1]+"/"+m[3]] = row
	}
	each := func(title string, columns []string, cell func(f figures, column string) string) {
		fmt.Fprintf(w, "\n%s\n\n| engine | %s |\n|---|%s\n", title, strings.Join(columns, " | "), strings.Repeat("---:|", len(columns)))
		for _, name := range names {
			fmt.Fprintf(w, "| %s |", name)
			for _, c := range columns {
				fmt.Fprintf(w, " %s |", cell(of[name], c))
			}
			fmt.Fprintln(w)
		}
	}
	called := []string{"issue", "login", "refresh-hot", "refresh-random", "revoke", "list"}
	each(fmt.Sprintf("Calls a second, 64 callers, %d sessions:", sessions), append(called, "below a limit", "at it"), func(f figures, c string) string {
		if row, ok := map[string]string{"below a limit": "limited", "at it": "full"}[c]; ok {
			return shown("%.2f", f["Login/"+row]["calls/s"]/f["Login/unlimited"]["calls/s"])
		}
		return shown("%.0f", f["Service/"+c]["calls/s"])
	})
	each("The same calls, ms of the slowest hundredth:", called, func(f figures, c string) string {
		return shown("%.1f", f["Service/"+c]["ms-p99"])
	})
	each("Logins beside other work, as a part of the rate alone, and the longest in ms:", []string{"alone", "list", "start", "backup", "purge"}, func(f figures, c string) string {
		x, ok := f["Beside/"+c]
		if !ok && c == "backup" {
			return "–"
		}
		return shown("%.2f", x["of-alone"]) + ", " + shown("%.0f", x["ms-max"])
	})
	return err
}

// shown is a figure that was measured, or says that it was not.
func shown(format string, v float64) string {
	if math.IsNaN(v) || math.IsInf(v, 0) || v == 0 {
		return "failed"
	}
	return fmt.Sprintf(format, v)
}
