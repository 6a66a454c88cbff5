package ledger

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// Checkpoint is what a signed note says of a log: its body in the form of C2SP tlog-checkpoint.
type Checkpoint struct {
	Origin string    // the log's name, and that of its key
	Size   int64     // records
	Root   tlog.Hash // of the tree over them (RFC 6962 §2.1)
}

// Text is the note's text: three lines.
func (c Checkpoint) Text() string {
	return c.Origin + "\n" + strconv.FormatInt(c.Size, 10) + "\n" + c.Root.String() + "\n"
}

// parseCheckpoint reads the text of a note. Extension lines, which C2SP tlog-checkpoint allows behind the three, are passed
// over: they are signed too and this log makes none.
func parseCheckpoint(text string) (Checkpoint, error) {
	lines := strings.SplitN(text, "\n", 4)
	if len(lines) != 4 || lines[0] == "" {
		return Checkpoint{}, errors.New("not a checkpoint: origin, size and root are three lines")
	}
	c := Checkpoint{Origin: lines[0]}
	var err error
	if c.Size, err = strconv.ParseInt(lines[1], 10, 64); err != nil || c.Size < 0 || strconv.FormatInt(c.Size, 10) != lines[1] {
		return Checkpoint{}, fmt.Errorf("not a checkpoint: size %.32q", lines[1])
	}
	if c.Root, err = tlog.ParseHash(lines[2]); err != nil || c.Root.String() != lines[2] {
		return Checkpoint{}, fmt.Errorf("not a checkpoint: root %.64q", lines[2])
	}
	if c.Size == 0 && c.Root != (&frontier{}).root() {
		return Checkpoint{}, errors.New("not a checkpoint: no records, and a root that is not that of the empty tree")
	}
	return c, nil
}

// Keys are whose signatures count. A checkpoint is good when it is signed by a key of the log and by at least Quorum of the
// witnesses: a witness's signature never stands in for the log's.
type Keys struct {
	Log       []note.Verifier // required; more than one where the log's key was changed, all of one name
	Witnesses []note.Verifier
	Quorum    int // of Witnesses
}

func (k *Keys) check() error {
	if len(k.Log) == 0 {
		return errors.New("ledger: Keys.Log is required: without the log's key nothing is proved")
	}
	for _, v := range k.Log {
		if v == nil || v.Name() != k.Log[0].Name() {
			return errors.New("ledger: the keys of a log have one name, its origin")
		}
	}
	if k.Quorum < 0 || k.Quorum > len(k.Witnesses) {
		return fmt.Errorf("ledger: a quorum of %d out of %d witnesses", k.Quorum, len(k.Witnesses))
	}
	seen := map[string]bool{}
	for _, v := range append(append([]note.Verifier(nil), k.Log...), k.Witnesses...) {
		if v == nil {
			return errors.New("ledger: a nil key")
		}
		id := fmt.Sprintf("%s %08x", v.Name(), v.KeyHash())
		if seen[id] {
			return fmt.Errorf("ledger: key %s is given twice", id)
		}
		seen[id] = true
	}
	return nil
}

// Open checks the signatures of a signed checkpoint and reads it. A [TamperError] with [ErrSignature] when it is not what
// the keys ask for.
func (k Keys) Open(signed []byte) (Checkpoint, error) {
	if err := k.check(); err != nil {
		return Checkpoint{}, err
	}
	return k.open(signed)
}

func (k *Keys) open(signed []byte) (Checkpoint, error) {
	all := append(append([]note.Verifier(nil), k.Log...), k.Witnesses...)
	n, err := note.Open(signed, note.VerifierList(all...))
	if err != nil {
		return Checkpoint{}, tampered(ErrSignature, "the checkpoint's signature: %v", err)
	}
	signedBy := func(list []note.Verifier) (count int) {
		for _, v := range list {
			for _, s := range n.Sigs {
				if s.Name == v.Name() && s.Hash == v.KeyHash() {
					count++
					break
				}
			}
		}
		return count
	}
	if signedBy(k.Log) == 0 {
		return Checkpoint{}, tampered(ErrSignature, "the checkpoint is not signed by the log's key")
	}
	if got := signedBy(k.Witnesses); got < k.Quorum {
		return Checkpoint{}, tampered(ErrSignature, "the checkpoint is co-signed by %d witnesses, not by %d", got, k.Quorum)
	}
	c, err := parseCheckpoint(n.Text)
	if err != nil {
		return Checkpoint{}, tampered(ErrSignature, "%v", err)
	}
	if c.Origin != k.Log[0].Name() {
		return Checkpoint{}, tampered(ErrSignature, "the checkpoint is of the log %.64q, not %.64q", c.Origin, k.Log[0].Name())
	}
	return c, nil
}

// SplitCheckpoints cuts a file that holds signed checkpoints one behind another, as [FilePublisher] keeps them.
func SplitCheckpoints(file []byte) ([][]byte, error) {
	var out [][]byte
	for len(bytes.TrimSpace(file)) > 0 {
		// A note ends with its signature lines, which begin with an em dash; the next one starts with its origin.
		i := bytes.Index(file, []byte("\n\n\u2014 "))
		if i < 0 {
			return nil, errors.New("ledger: no signature behind the last checkpoint")
		}
		end := i + 2
		for bytes.HasPrefix(file[end:], []byte("\u2014 ")) {
			n := bytes.IndexByte(file[end:], '\n')
			if n < 0 {
				return nil, errors.New("ledger: the last checkpoint is cut off")
			}
			end += n + 1
		}
		out = append(out, bytes.TrimLeft(file[:end:end], "\n"))
		file = file[end:]
	}
	return out, nil
}
