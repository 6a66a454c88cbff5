// Table runs what matters of the benchmarks a few times, in turn, and prints medians and ratios as a Markdown table:
//
//	go run ./bench/cmd/table            # from the project's folder; some minutes
//	go run ./bench/cmd/table -count 3 -only Validate
package main

import (
	"bufio"
	"bytes"
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
	count := flag.Int("count", 5, "runs of each benchmark")
	per := flag.Duration("time", 200*time.Millisecond, "length of each run")
	only := flag.String("only", "Validate|Middleware|Issue|Refresh|APIKey|Scope|RevokeToRefuse", "which benchmarks, by their names' first part")
	flag.Parse()
	dir, err := folder()
	if err != nil {
		log.Fatal(err)
	}
	got := map[string]*figure{}
	var order []string
	for range *count { // in turn, so that a slow minute of the machine hits all of them
		if err := run(dir, *only, *per, got, &order); err != nil {
			log.Fatal(err)
		}
	}
	print(os.Stdout, got, order)
}

// folder is where the benchmarks are: this module's.
func folder() (string, error) {
	out, err := exec.Command("go", "list", "-f", "{{.Dir}}", "github.com/apitoken-go/apitoken/bench").Output()
	if err != nil {
		return "", fmt.Errorf("the bench module is not here: run this in the project's folder: %w", err)
	}
	return filepath.Clean(strings.TrimSpace(string(out))), nil
}

// figure is what one benchmark gave.
type figure struct {
	ns     []float64
	allocs float64
}

var line = regexp.MustCompile(`^Benchmark(\S+?)(?:-\d+)?\s+\d+\s+([\d.]+) ns/op(.*)$`)

func run(dir, only string, per time.Duration, got map[string]*figure, order *[]string) error {
	cmd := exec.Command("go", "test", "-run", "^$", "-bench", "^Benchmark("+only+")", "-benchtime", per.String(), ".")
	cmd.Dir = dir
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	for s := bufio.NewScanner(bytes.NewReader(out)); s.Scan(); {
		m := line.FindStringSubmatch(s.Text())
		if m == nil {
			continue
		}
		f := got[m[1]]
		if f == nil {
			f = &figure{}
			got[m[1]] = f
			*order = append(*order, m[1])
		}
		ns, err := strconv.ParseFloat(m[2], 64)
		if err != nil {
			return err
		}
		f.ns = append(f.ns, ns)
		if fields := strings.Fields(m[3]); len(fields) > 1 && fields[len(fields)-1] == "allocs/op" {
			if f.allocs, err = strconv.ParseFloat(fields[len(fields)-2], 64); err != nil {
				return err
			}
		}
	}
	return nil
}

func (f *figure) median() float64 {
	s := slices.Sorted(slices.Values(f.ns))
	return s[len(s)/2]
}

// print groups the figures by what they measure; raw is what each is compared with, and this module where there is no raw.
func print(w io.Writer, got map[string]*figure, order []string) {
	fmt.Fprintf(w, "%s/%s, %d cores, %s, %s; medians of %d runs\n\n", runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), runtime.Version(), time.Now().Format("2006-01-02"), runs(got))
	fmt.Fprintln(w, "| what | who | time | to bare | to apitoken | allocs |")
	fmt.Fprintln(w, "|---|---|---:|---:|---:|---:|")
	for _, name := range order {
		what, who, ok := split(name)
		if !ok {
			continue
		}
		f := got[name]
		fmt.Fprintf(w, "| %s | %s | %s | %s | %s | %.0f |\n", what, who, unit(f.median()), ratio(f, find(got, name, "raw")), ratio(f, find(got, name, "apitoken")), f.allocs)
	}
}

func runs(got map[string]*figure) int {
	n := 0
	for _, f := range got {
		n = max(n, len(f.ns))
	}
	return n
}

var peers = []string{"apitoken", "raw", "golang-jwt", "jwx", "go-jose", "go-oidc", "zitadel", "cristalhq", "fosite", "auth0", "go-oauth2", "jwtauth", "casbin"}

// split takes the implementation out of a benchmark's name.
func split(name string) (what, who string, ok bool) {
	parts := strings.Split(name, "/")
	for i, p := range parts {
		if slices.Contains(peers, p) {
			return strings.Join(slices.Delete(slices.Clone(parts), i, i+1), " "), p, true
		}
	}
	return name, "apitoken", true
}

// find is the figure of another implementation for the same thing. Of a second sight the bare check is the first one's.
func find(got map[string]*figure, name, who string) *figure {
	parts := strings.Split(name, "/")
	for i, p := range parts {
		if slices.Contains(peers, p) {
			parts[i] = who
		}
	}
	other := strings.Join(parts, "/")
	if f := got[other]; f != nil {
		return f
	}
	return got[strings.TrimSuffix(other, "repeat")+"first"]
}

func ratio(f, base *figure) string {
	if base == nil {
		return ""
	}
	r := f.median() / base.median()
	if r < 0.01 {
		return fmt.Sprintf("1/%.0f", 1/r)
	}
	return fmt.Sprintf("%.2f", r)
}

func unit(ns float64) string {
	switch {
	case ns < 1000:
		return fmt.Sprintf("%.0f ns", ns)
	case ns < 1e6:
		return fmt.Sprintf("%.1f µs", ns/1e3)
	}
	return fmt.Sprintf("%.2f ms", ns/1e6)
}
