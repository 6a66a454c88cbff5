// Command apitoken-verify checks an export of an audit ledger, offline: it needs the export, a signed checkpoint and the
// log's public key.
//
//	apitoken-verify -key 'auth.example.com/audit+1a2b3c4d+AbC…' -checkpoint checkpoint.txt -earlier kept.txt export.jsonl
//
// The export may be in parts, which are read one behind another, and "-" is the standard input. It ends with 0 when all of it is
// proved, 1 when the log was tampered with, 2 when something lies behind the checkpoint that nothing proves, and 3 when it
// could not check.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/mod/sumdb/note"

	"github.com/apitoken-go/apitoken/ledger"
)

func main() { os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }

// Exit codes.
const (
	proved = iota
	tamperedWith
	unsealed
	notChecked
)

type list []string

func (l *list) String() string     { return strings.Join(*l, " ") }
func (l *list) Set(v string) error { *l = append(*l, v); return nil }

func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("apitoken-verify", flag.ContinueOnError)
	flags.SetOutput(stderr)
	var keys, witnesses, earlier, proofs list
	flags.Var(&keys, "key", "the log's public `key`, or @file; again for each key that it had before")
	flags.Var(&witnesses, "witness", "a witness's public `key`, or @file; may be repeated")
	quorum := flags.Int("quorum", -1, "how many of the witnesses must have co-signed; default all")
	checkpoint := flags.String("checkpoint", "", "`file` with the checkpoint; of several in it the last counts, and the others are earlier ones")
	flags.Var(&earlier, "earlier", "`file` with checkpoints that were kept elsewhere; may be repeated")
	flags.Var(&proofs, "proof", "`file` with a consistency proof, JSON, for an earlier checkpoint before the export's first record; may be repeated")
	tail := flags.Bool("allow-unsealed", false, "pass over what lies behind the checkpoint")
	flags.Usage = func() {
		fmt.Fprintln(stderr, "usage: apitoken-verify -key KEY -checkpoint FILE [-earlier FILE]… EXPORT…")
		flags.PrintDefaults()
	}
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return proved
		}
		return notChecked
	}
	rep, err := check(flags.Args(), stdin, keys, witnesses, *quorum, *checkpoint, earlier, proofs, *tail)
	switch {
	case err == nil:
		fmt.Fprintf(stdout, "proved: records %d to %d of %s, by its checkpoint of %d records and %d earlier ones\n",
			rep.First, rep.First+rep.Records-1, rep.Checkpoint.Origin, rep.Checkpoint.Size, rep.Earlier)
		if rep.Unsealed > 0 || rep.Torn > 0 {
			fmt.Fprintf(stdout, "not proved: %d records and %d bytes of an incomplete one behind the checkpoint\n", rep.Unsealed, rep.Torn)
		}
		return proved
	case errors.Is(err, ledger.ErrTampered):
		fmt.Fprintln(stdout, "TAMPERED:", err)
		return tamperedWith
	case errors.Is(err, ledger.ErrUnsealed):
		fmt.Fprintln(stdout, "not all is proved:", err)
		return unsealed
	}
	fmt.Fprintln(stderr, "apitoken-verify:", err)
	return notChecked
}

func check(exports []string, stdin io.Reader, keys, witnesses list, quorum int, checkpoint string, earlier, proofs list, tail bool) (ledger.Report, error) {
	v := ledger.Verification{AllowUnsealed: tail}
	var err error
	if v.Keys.Log, err = parseKeys(keys); err != nil {
		return ledger.Report{}, err
	}
	if v.Keys.Witnesses, err = parseKeys(witnesses); err != nil {
		return ledger.Report{}, err
	}
	if v.Keys.Quorum = quorum; quorum < 0 {
		v.Keys.Quorum = len(witnesses)
	}
	if checkpoint == "" || len(keys) == 0 || len(exports) == 0 {
		return ledger.Report{}, errors.New("-key, -checkpoint and an export are required")
	}
	own, err := readCheckpoints(checkpoint)
	if err != nil {
		return ledger.Report{}, err
	}
	v.Checkpoint, v.Earlier = own[len(own)-1], own[:len(own)-1]
	for _, path := range earlier {
		list, err := readCheckpoints(path)
		if err != nil {
			return ledger.Report{}, err
		}
		v.Earlier = append(v.Earlier, list...)
	}
	for _, path := range proofs {
		data, err := os.ReadFile(path)
		if err != nil {
			return ledger.Report{}, err
		}
		var p ledger.ConsistencyProof
		if err := json.Unmarshal(data, &p); err != nil {
			return ledger.Report{}, fmt.Errorf("%s: %w", path, err)
		}
		v.Proofs = append(v.Proofs, p)
	}
	var parts []io.Reader
	for _, path := range exports {
		if path == "-" {
			parts = append(parts, stdin)
			continue
		}
		f, err := os.Open(path)
		if err != nil {
			return ledger.Report{}, err
		}
		defer f.Close()
		parts = append(parts, f)
	}
	return ledger.Verify(io.MultiReader(parts...), v)
}

func parseKeys(texts list) ([]note.Verifier, error) {
	var out []note.Verifier
	for _, text := range texts {
		if path, ok := strings.CutPrefix(text, "@"); ok {
			data, err := os.ReadFile(path)
			if err != nil {
				return nil, err
			}
			text = string(data)
		}
		v, err := ledger.ParseKey(text)
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, nil
}

func readCheckpoints(path string) ([][]byte, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	list, err := ledger.SplitCheckpoints(data)
	if err == nil && len(list) == 0 {
		err = errors.New("no checkpoint")
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return list, nil
}
