package ledger

import (
	"fmt"

	"golang.org/x/mod/sumdb/tlog"
)

// InclusionProof shows that one record is in the log of a checkpoint (RFC 6962 §2.1.1).
type InclusionProof struct {
	Pos    int64            `json:"pos"`
	Size   int64            `json:"size"` // of the checkpoint's tree
	Line   string           `json:"line"` // the record, without its newline
	Hashes tlog.RecordProof `json:"hashes"`
}

// Check verifies p against a signed checkpoint and returns the record. The error is a [TamperError], or says that keys cannot
// be used.
func (p InclusionProof) Check(signed []byte, keys Keys) (Leaf, error) {
	c, err := keys.Open(signed)
	if err != nil {
		return Leaf{}, err
	}
	if c.Size != p.Size {
		return Leaf{}, tampered(ErrAltered, "the proof is for a log of %d records, the checkpoint of one of %d", p.Size, c.Size)
	}
	leaf, err := ParseLeaf([]byte(p.Line))
	if err == nil && leaf.Pos != p.Pos {
		err = fmt.Errorf("it says that it is record %d", leaf.Pos)
	}
	if err == nil {
		err = tlog.CheckRecord(p.Hashes, c.Size, c.Root, p.Pos, tlog.RecordHash([]byte(p.Line)))
	}
	if err != nil {
		return Leaf{}, &TamperError{Kind: ErrAltered, From: p.Pos, To: p.Pos + 1, Detail: err.Error()}
	}
	return leaf, nil
}

// ConsistencyProof shows that the log of one checkpoint begins with the log of an older one (RFC 6962 §2.1.2).
type ConsistencyProof struct {
	Old    int64          `json:"old"` // sizes
	New    int64          `json:"new"`
	Hashes tlog.TreeProof `json:"hashes"`
}

// Check verifies p against both signed checkpoints. The error is a [TamperError], or says that keys cannot be used.
func (p ConsistencyProof) Check(older, newer []byte, keys Keys) error {
	o, err := keys.Open(older)
	if err != nil {
		return err
	}
	n, err := keys.Open(newer)
	if err != nil {
		return err
	}
	return p.check(o, n)
}

func (p ConsistencyProof) check(o, n Checkpoint) error {
	if o.Size != p.Old || n.Size != p.New {
		return tampered(ErrAltered, "the proof is from %d to %d records, the checkpoints are of %d and %d", p.Old, p.New, o.Size, n.Size)
	}
	if o.Size == 0 {
		return nil // every log begins with nothing
	}
	if n.Size < o.Size {
		return &TamperError{Kind: ErrRolledBack, From: n.Size, To: o.Size, Detail: "the newer checkpoint has fewer records"}
	}
	if err := tlog.CheckTree(p.Hashes, n.Size, n.Root, o.Size, o.Root); err != nil {
		return tampered(ErrSplitView, "the log of %d records does not begin with that of %d: %v", n.Size, o.Size, err)
	}
	return nil
}
