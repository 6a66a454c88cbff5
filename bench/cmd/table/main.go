// Table measures this module and its peers side by side and prints the Markdown table of docs/performance.md:
//
//	go run ./bench/cmd/table                       # from the project's folder; some minutes
//	go run ./bench/cmd/table -rounds 20 -only Validate
//
// All sides of a group run in one process, in turn, a few milliseconds each, in many rounds. A time is the median of the
// rounds; a ratio is the median of each round's own ratio, so that a slow moment of the machine, which hits both sides, leaves
// it alone. How long a revocation takes to reach another process is one benchmark for each engine that is installed, and so is
// what a service does a second on it, which a table of its own shows.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
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
	if err != nil {
		log.Fatal(err)
	}
	revoke, service := pick.MatchString("RevokeToRefuse"), pick.MatchString("Service")
	if len(sides) == 0 && !revoke && !service {
		log.Fatalf("no group matches %q", *only)
	}
	print(os.Stdout, sides)
	if revoke {
		if err := revocations(os.Stdout, dir); err != nil {
			log.Fatal(err)
		}
	}
	if service {
		if err := engines(os.Stdout, dir, *many); err != nil {
			log.Fatal(err)
		}
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
	out, err := run(dir, "-v", "-run", "^TestSideBySide$", "-count", "1", "-timeout", "2h", ".", "-rounds", strconv.Itoa(rounds), "-only", only)
	if err != nil {
		return nil, err
	}
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
	return sides, nil
}

func run(dir string, args ...string) ([]byte, error) {
	cmd := exec.Command("go", append([]string{"test"}, args...)...)
	cmd.Dir = dir
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%w\n%s", err, out)
	}
	return out, nil
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
	if err != nil {
		return err
	}
	for s := bufio.NewScanner(bytes.NewReader(out)); s.Scan(); {
		if m := line.FindStringSubmatch(s.Text()); m != nil {
			fmt.Fprintf(w, "| RevokeToRefuse %s | apitoken | %s µs, p99 %s µs | | | |\n", m[1], m[2], m[3])
		}
	}
	return nil
}

var perEngine = regexp.MustCompile(`^Benchmark(?:Service|Login)/(\S+?)/(\S+?)(?:-\d+)?\s+\d+\s.*?([\d.e+]+) calls/s`)

// engines prints what a service does a second on each engine, as 64 callers see it. Limits are the rate of logins at a limit of
// sessions for one subject, as a part of the rate without, beside 20,000 sessions of others.
func engines(w io.Writer, dir string, sessions int) error {
	if err := os.Setenv("APITOKEN_BENCH_SESSIONS", strconv.Itoa(sessions)); err != nil {
		return err
	}
	out, err := run(dir, "-run", "^$", "-bench", "^(BenchmarkService|BenchmarkLogin)$", "-benchtime", "3s", "-timeout", "2h", ".")
	if err != nil {
		return err
	}
	rates := map[string]map[string]float64{}
	var names []string
	for s := bufio.NewScanner(bytes.NewReader(out)); s.Scan(); {
		m := perEngine.FindStringSubmatch(s.Text())
		if m == nil {
			continue
		}
		rate, err := strconv.ParseFloat(m[3], 64)
		if err != nil {
			return err
		}
		if rates[m[1]] == nil {
			rates[m[1]] = map[string]float64{}
			names = append(names, m[1])
		}
		rates[m[1]][m[2]] = rate
	}
	columns := []string{"issue", "login", "refresh-hot", "refresh-random", "revoke", "list"}
	fmt.Fprintf(w, "\nCalls a second, 64 callers, %d sessions:\n\n| engine | %s | limits |\n|---|%s\n", sessions, strings.Join(columns, " | "), strings.Repeat("---:|", len(columns)+1))
	for _, name := range names {
		fmt.Fprintf(w, "| %s ", name)
		for _, c := range columns {
			fmt.Fprintf(w, "| %.0f ", rates[name][c])
		}
		fmt.Fprintf(w, "| %.2f |\n", rates[name]["limited"]/rates[name]["unlimited"])
	}
	return nil
}
