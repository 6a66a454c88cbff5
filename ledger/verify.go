package ledger

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"

	"golang.org/x/mod/sumdb/tlog"
)

// What a verification found. All but ErrUnsealed are ErrTampered as well.
var (
	ErrTampered = errors.New("ledger: the log was tampered with")

	ErrAltered    = errors.New("ledger: records were edited, removed, added or moved")
	ErrTruncated  = errors.New("ledger: records are missing at the end")
	ErrRolledBack = errors.New("ledger: the log is older than an earlier checkpoint of it")
	ErrSplitView  = errors.New("ledger: two checkpoints tell of different logs")
	ErrSignature  = errors.New("ledger: the checkpoint is not signed as it must be")

	// ErrUnsealed: something lies behind the newest checkpoint, and nothing proves it. A log that was copied while it was
	// written, or after a crash, looks like that.
	ErrUnsealed = errors.New("ledger: data behind the newest checkpoint")
)

// TamperError tells what is wrong with a log.
type TamperError struct {
	Kind     error // such as ErrAltered
	From, To int64 // the records among which it is, To not included; both zero: not of particular records
	Detail   string
}

// Error says it in a line.
func (e *TamperError) Error() string {
	if e.To > e.From {
		return fmt.Sprintf("%v: among records %d to %d: %s", e.Kind, e.From, e.To-1, e.Detail)
	}
	return fmt.Sprintf("%v: %s", e.Kind, e.Detail)
}

// Is makes e both its Kind and ErrTampered.
func (e *TamperError) Is(target error) bool { return target == e.Kind || target == ErrTampered }

func tampered(kind error, format string, args ...any) *TamperError {
	return &TamperError{Kind: kind, Detail: fmt.Sprintf(format, args...)}
}

// Verification is what an export is held against.
type Verification struct {
	Keys       Keys
	Checkpoint []byte // required: a signed checkpoint, best the newest that is at hand
	// Earlier are signed checkpoints that came another way: kept by the verifier, by a witness, in another store. With one of
	// them even who holds the log's key cannot change what it covers.
	Earlier [][]byte
	// Proofs connect earlier checkpoints that lie before the export's first record; see [Ledger.ProveConsistency].
	Proofs []ConsistencyProof
	// AllowUnsealed takes an export that goes on behind Checkpoint. The rest is not proved by anything.
	AllowUnsealed bool
}

// Report is what a verification saw.
type Report struct {
	Checkpoint Checkpoint
	First      int64 // the position of the export's first record
	Records    int64 // read and proved
	Earlier    int   // earlier checkpoints that agree
	Unsealed   int64 // whole records behind the checkpoint
	Torn       int   // bytes of an incomplete record behind them: what a crash leaves
}

// Verify reads an export to its end and reports whether it is exactly what the checkpoint and the earlier ones say. It
// needs nothing else: no store, no network. The error is a [TamperError], ErrUnsealed, the reader's own, or
// says that v itself cannot be used.
func Verify(export io.Reader, v Verification) (Report, error) {
	if err := v.Keys.check(); err != nil {
		return Report{}, err
	}
	last, err := v.Keys.open(v.Checkpoint)
	if err != nil {
		return Report{}, err
	}
	rep := Report{Checkpoint: last}
	var useless error
	var marks []Checkpoint // in order of size; last is the last
	for i, signed := range v.Earlier {
		c, err := v.Keys.open(signed)
		if err != nil {
			// One that does not verify is no evidence against the log; who supplied it must know all the same.
			useless = fmt.Errorf("ledger: earlier checkpoint %d proves nothing, for or against the log: %v", i, err)
			continue
		}
		if c.Size > last.Size {
			return rep, &TamperError{Kind: ErrRolledBack, From: last.Size, To: c.Size, Detail: fmt.Sprintf("the log ends at %d records and had %d", last.Size, c.Size)}
		}
		marks = append(marks, c)
	}
	marks = append(marks, last)
	slices.SortStableFunc(marks, func(a, b Checkpoint) int { return int(min(max(a.Size-b.Size, -1), 1)) })
	for i := 1; i < len(marks); i++ {
		if marks[i].Size == marks[i-1].Size && marks[i].Root != marks[i-1].Root {
			return rep, tampered(ErrSplitView, "two signed checkpoints of %d records have different roots", marks[i].Size)
		}
	}
	rep, err = rep.read(export, &v, marks)
	if err == nil {
		err = useless
	}
	return rep, err
}

// read goes through the export and compares the tree's root at each mark.
func (rep Report) read(export io.Reader, v *Verification, marks []Checkpoint) (Report, error) {
	last := marks[len(marks)-1]
	lines := bufio.NewReaderSize(export, MaxLeafBytes)
	var tree frontier
	proved := int64(0) // up to the last mark that agreed
	started := false
	pass := func() error { // the marks at the tree's size
		for len(marks) > 0 && marks[0].Size == tree.size {
			if root := tree.root(); root != marks[0].Root {
				return &TamperError{Kind: ErrAltered, From: proved, To: tree.size, Detail: "they do not give the root of the checkpoint of " + fmt.Sprint(tree.size) + " records"}
			}
			marks, proved, rep.Earlier = marks[1:], tree.size, rep.Earlier+1
		}
		return nil
	}
	for {
		line, err := lines.ReadSlice('\n')
		switch {
		case err == nil:
		case errors.Is(err, bufio.ErrBufferFull) && tree.size >= last.Size:
			return rep, fmt.Errorf("%w: record %d is over %d bytes", ErrUnsealed, tree.size, MaxLeafBytes)
		case errors.Is(err, bufio.ErrBufferFull):
			return rep, &TamperError{Kind: ErrAltered, From: proved, To: max(last.Size, tree.size+1), Detail: fmt.Sprintf("record %d is over %d bytes", tree.size, MaxLeafBytes)}
		case errors.Is(err, io.EOF):
			rep.Records = min(tree.size, last.Size) - rep.First
			if !started {
				if err := pass(); err != nil {
					return rep, err
				}
			}
			if tree.size < last.Size {
				what := "the export ends there"
				if len(line) > 0 {
					what = "the export ends inside record " + fmt.Sprint(tree.size)
				}
				return rep, &TamperError{Kind: ErrTruncated, From: tree.size, To: last.Size, Detail: what}
			}
			rep.Earlier = max(rep.Earlier-1, 0) // last itself
			if rep.Torn = len(line); (rep.Torn > 0 || rep.Unsealed > 0) && !v.AllowUnsealed {
				return rep, fmt.Errorf("%w: %d records and %d bytes of an incomplete one", ErrUnsealed, rep.Unsealed, rep.Torn)
			}
			return rep, nil
		default:
			return rep, fmt.Errorf("ledger: read the export: %w", err)
		}
		line = line[:len(line)-1]
		if bytes.HasPrefix(line, []byte(headPrefix)) {
			head, err := parseHead(line, v.Keys.originOr(last.Origin))
			if err == nil && started && (head.size != tree.size || head.root() != tree.root()) {
				err = fmt.Errorf("a part that begins with record %d does not follow record %d", head.size, tree.size-1)
			}
			if err != nil && started && tree.size >= last.Size {
				return rep, fmt.Errorf("%w: %v", ErrUnsealed, err) // all that the checkpoint covers is proved
			}
			if err != nil {
				return rep, &TamperError{Kind: ErrAltered, From: proved, To: last.Size, Detail: err.Error()}
			}
			if !started {
				tree, rep.First = head, head.size
				started = true
				if tree.size > last.Size {
					return rep, tampered(ErrTruncated, "the export begins at record %d, behind the checkpoint's %d", tree.size, last.Size)
				}
				all := len(marks)
				if marks, err = provedElsewhere(marks, tree.size, last, v.Proofs); err != nil {
					return rep, err
				}
				rep.Earlier += all - len(marks)
			}
			if err := pass(); err != nil {
				return rep, err
			}
			continue
		}
		if !started {
			started = true
			if err := pass(); err != nil {
				return rep, err
			}
		}
		leaf, err := readLeaf(string(line))
		if err == nil && leaf.Pos != tree.size {
			err = fmt.Errorf("it says that it is record %d", leaf.Pos)
		}
		if tree.size >= last.Size {
			rep.Unsealed++
			if err != nil {
				return rep, fmt.Errorf("%w: record %d: %v", ErrUnsealed, tree.size, err)
			}
			tree.add(tlog.RecordHash(line)) // no mark is left to compare it with, but the head of a next part
			continue
		}
		if err != nil {
			return rep, &TamperError{Kind: ErrAltered, From: proved, To: max(marks[0].Size, tree.size+1), Detail: fmt.Sprintf("record %d: %v", tree.size, err)}
		}
		tree.add(tlog.RecordHash(line))
		if err := pass(); err != nil {
			return rep, err
		}
	}
}

func (k *Keys) originOr(origin string) string {
	if len(k.Log) > 0 {
		return k.Log[0].Name()
	}
	return origin
}

// provedElsewhere passes over the marks before first for which a proof leads to last; each other one ends it.
func provedElsewhere(marks []Checkpoint, first int64, last Checkpoint, proofs []ConsistencyProof) ([]Checkpoint, error) {
	for len(marks) > 0 && marks[0].Size < first {
		old := marks[0]
		ok := old.Size == 0
		for _, p := range proofs {
			if p.Old == old.Size && p.New == last.Size {
				if err := p.check(old, last); err != nil {
					return nil, err
				}
				ok = true
			}
		}
		if !ok {
			return nil, fmt.Errorf("ledger: the checkpoint of %d records lies before the export's first record, %d: give the archived part too, or a proof from %d to %d records", old.Size, first, old.Size, last.Size)
		}
		marks = marks[1:]
	}
	return marks, nil
}

// A head is the first line of an export whose beginning was archived: the log's name, the position of the first record, and
// the right edge of the tree before it, from which the rest is hashed on.
type head struct {
	V        int         `json:"apitoken_ledger"`
	Origin   string      `json:"origin"`
	From     int64       `json:"from"`
	Frontier []tlog.Hash `json:"frontier"`
}

const headPrefix = `{"apitoken_ledger":`

func (f *frontier) head(origin string) ([]byte, error) {
	b, err := json.Marshal(head{1, origin, f.size, f.hashes})
	return append(b, '\n'), err
}

func parseHead(line []byte, origin string) (frontier, error) {
	var h head
	err := json.Unmarshal(line, &h)
	f := frontier{h.From, h.Frontier}
	if err == nil {
		var again []byte
		if again, err = f.head(h.Origin); err == nil && !bytes.Equal(again[:len(again)-1], line) {
			err = errNotCanonical
		}
	}
	switch {
	case err != nil:
		return frontier{}, fmt.Errorf("the export's first line: %w", err)
	case h.Origin != origin:
		return frontier{}, fmt.Errorf("the export is of the log %.64q", h.Origin)
	case h.From < 0 || len(h.Frontier) != len(frontierIndexes(h.From)):
		return frontier{}, fmt.Errorf("the export's first line: %d hashes do not make a tree of %d records", len(h.Frontier), h.From)
	}
	return f, nil
}
