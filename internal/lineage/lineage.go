// Package lineage notes what API keys descend from, so that a rule on a token, on a session or on a subject's sessions is kept until
// the keys that it reaches have ended. It owns the records of this: one, without content, for each ID that keys descend from.
//
// It promises that a record lives at least as long as the keys for which it was noted. It stands on internal/commit and holds no lock.
// The root calls it before it writes an API key, and where it says for how long a rule is kept.
package lineage

import (
	"context"
	"encoding/hex"
	"errors"
	"strings"

	"github.com/apitoken-go/apitoken/internal/commit"
	"github.com/apitoken-go/apitoken/internal/fault"
	"github.com/apitoken-go/apitoken/internal/opaque"
	"github.com/apitoken-go/apitoken/store"
)

// Kind is of the records of this package.
const Kind store.Kind = "lineage"

// Of is what an ID names.
type Of string

// What keys descend from.
const (
	Thing   Of = "thing"   // a token or grant
	Subject Of = "subject" // whose keys descend from sessions
)

// Notes are the records of one service.
type Notes struct {
	Writer    *commit.Writer
	Namespace func() string // part of the records' names
}

func (n *Notes) id(of Of, id string) string {
	h := opaque.Hash("lineage1", []byte(n.Namespace()), []byte(of), []byte(id))
	return hex.EncodeToString(h[:])
}

// IsThing reports whether a name of what a key stands on is that of a token or session; the others are those of a client or a signing
// key, which have a colon.
func IsThing(name string) bool { return !strings.Contains(name, ":") }

// Note writes down that a subject's key descends from by until then, Unix ms; zero: for ever. store.ErrConflict: others note the
// same; repeat it.
func (n *Notes) Note(ctx context.Context, subject string, by []string, until int64) error {
	var ids []string
	for _, s := range by {
		if IsThing(s) {
			ids = append(ids, n.id(Thing, s))
		}
	}
	if len(ids) > 0 {
		ids = append(ids, n.id(Subject, subject))
	}
	for _, id := range ids {
		old, err := n.Writer.Get(ctx, Kind, id)
		switch {
		case err != nil && !errors.Is(err, fault.NotFound):
			return err
		case err == nil && (old.Expires == 0 || until != 0 && until <= old.Expires):
			continue
		}
		c := commit.NewChange()
		if err := commit.Bare(c, store.Record{Kind: Kind, ID: id, Expires: until}, old.Version); err != nil {
			return err
		}
		if _, err := n.Writer.Commit(ctx, c); err != nil {
			return err
		}
	}
	return nil
}

// Any reports whether keys may descend from what the ID names: true where nobody can tell.
func (n *Notes) Any(ctx context.Context, of Of, id string) bool {
	_, err := n.Writer.Get(ctx, Kind, n.id(of, id))
	return !errors.Is(err, fault.NotFound)
}
