package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/mod/sumdb/note"

	"github.com/apitoken-go/apitoken/ledger"
)

func (a *app) ledgerCommand() *cobra.Command {
	c := &cobra.Command{Use: "ledger", Short: "Verify an audit ledger", Args: exactly(0, ""), RunE: func(c *cobra.Command, _ []string) error { return c.Help() }}
	var keys, keyFiles, witnesses, earlier, proofs []string
	var checkpoint string
	var unsealed bool
	quorum := -1
	verify := &cobra.Command{
		Use: "verify EXPORT…", Short: "Prove that an export is what its checkpoint says, offline",
		Long: `verify reads an export of an audit ledger, in parts one behind another, and proves it by a signed checkpoint: nothing was edited, removed,
added or moved. Checkpoints that were kept elsewhere (--earlier) and witnesses prove it against whoever holds the log's key too.
It needs neither a store nor a network.

Exit code 3: the log was tampered with, or continues after the checkpoint, where nothing proves it.`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 || checkpoint == "" || len(keys)+len(keyFiles) == 0 {
				return usage("Such as ledger verify --key-file log.pub --checkpoint checkpoint.txt export.jsonl.", "an export, --checkpoint and the log's key are required")
			}
			return nil
		},
		RunE: func(_ *cobra.Command, args []string) error {
			v := ledger.Verification{AllowUnsealed: unsealed}
			for _, path := range keyFiles {
				b, err := a.read(path, 64<<10)
				if err != nil {
					return err
				}
				keys = append(keys, string(b))
			}
			var err error
			if v.Keys.Log, err = parseKeys(keys); err != nil {
				return err
			}
			if v.Keys.Witnesses, err = parseKeys(witnesses); err != nil {
				return err
			}
			if v.Keys.Quorum = quorum; quorum < 0 {
				v.Keys.Quorum = len(witnesses)
			}
			return a.verify(&v, args, checkpoint, earlier, proofs)
		},
	}
	f := verify.Flags()
	f.StringArrayVar(&keys, "key", nil, "the log's `public key`; again for each that it had before")
	f.StringArrayVar(&keyFiles, "key-file", nil, "`file` with it; may be repeated")
	f.StringVar(&checkpoint, "checkpoint", "", "`file` with the checkpoint; of several in it the last counts, and the others are earlier ones")
	f.StringArrayVar(&earlier, "earlier", nil, "`file` with checkpoints that were kept elsewhere; may be repeated")
	f.StringArrayVar(&witnesses, "witness", nil, "a witness's `public key`; may be repeated")
	f.IntVar(&quorum, "quorum", -1, "how many witnesses must have co-signed; default: all")
	f.StringArrayVar(&proofs, "proof", nil, "`file` with a consistency proof, for an earlier checkpoint before the export's first record")
	f.BoolVar(&unsealed, "allow-unsealed", false, "pass over what lies behind the checkpoint")
	c.AddCommand(verify)
	return c
}

func parseKeys(texts []string) (list []note.Verifier, err error) {
	for _, text := range texts {
		v, err := ledger.ParseKey(text)
		if err != nil {
			return nil, &failure{code: misused, what: "a public key cannot be read", err: err}
		}
		list = append(list, v)
	}
	return list, nil
}

func (a *app) checkpoints(path string) ([][]byte, error) {
	b, err := a.read(path, 64<<20)
	if err != nil {
		return nil, err
	}
	list, err := ledger.SplitCheckpoints(b)
	if err == nil && len(list) == 0 {
		err = errors.New("no checkpoint")
	}
	if err != nil {
		return nil, &failure{code: misused, what: path, err: err}
	}
	return list, nil
}

// verdict is what verify prints.
type verdict struct {
	Verdict  string `json:"verdict"` // proved, tampered or unsealed
	Detail   string `json:"detail,omitempty"`
	Log      string `json:"log,omitempty"`
	First    int64  `json:"first"`
	Records  int64  `json:"records"`
	Size     int64  `json:"checkpoint_size"`
	Earlier  int    `json:"earlier"`
	Unsealed int64  `json:"unsealed"`
}

func (a *app) verify(v *ledger.Verification, exports []string, checkpoint string, earlier, proofs []string) error {
	own, err := a.checkpoints(checkpoint)
	if err != nil {
		return err
	}
	v.Checkpoint, v.Earlier = own[len(own)-1], own[:len(own)-1]
	for _, path := range earlier {
		list, err := a.checkpoints(path)
		if err != nil {
			return err
		}
		v.Earlier = append(v.Earlier, list...)
	}
	for _, path := range proofs {
		b, err := a.read(path, 1<<20)
		if err != nil {
			return err
		}
		var p ledger.ConsistencyProof
		if err := json.Unmarshal(b, &p); err != nil {
			return &failure{code: misused, what: path + " holds no consistency proof", err: err}
		}
		v.Proofs = append(v.Proofs, p)
	}
	var parts []io.Reader
	total := int64(0)
	for _, path := range exports {
		if path == "-" {
			parts, total = append(parts, a.in), -1
			continue
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		if info, err := f.Stat(); err == nil && total >= 0 {
			total += info.Size()
		}
		parts = append(parts, f)
	}
	bar := a.bar(total, "verify", true)
	rep, err := ledger.Verify(io.TeeReader(io.MultiReader(parts...), bar), *v)
	_ = bar.Finish() // only what is shown
	x := verdict{Verdict: "proved", Log: rep.Checkpoint.Origin, First: rep.First, Records: rep.Records, Size: rep.Checkpoint.Size, Earlier: rep.Earlier, Unsealed: rep.Unsealed}
	switch {
	case err == nil:
	case errors.Is(err, ledger.ErrTampered):
		x.Verdict, x.Detail = "tampered", err.Error()
	case errors.Is(err, ledger.ErrUnsealed):
		x.Verdict, x.Detail = "unsealed", err.Error()
	default:
		return err
	}
	if a.json {
		if err := a.print(x); err != nil {
			return err
		}
	} else {
		a.list("verdict", x.Verdict, "because", x.Detail, "log", x.Log, "records", fmt.Sprintf("%d, from %d", x.Records, x.First),
			"checkpoint", fmt.Sprintf("of %d records, and %d earlier ones", x.Size, x.Earlier))
		if x.Unsealed > 0 {
			a.list("not proved", fmt.Sprintf("%d records behind the checkpoint", x.Unsealed))
		}
	}
	if x.Verdict != "proved" {
		return errFound
	}
	return nil
}
