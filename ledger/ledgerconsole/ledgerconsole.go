// Package ledgerconsole lets the console's pages of events verify a ledger and give out its proofs.
//
//	console.New(svc, console.Options{Ledger: ledgerconsole.New(led, svc, keys), …})
package ledgerconsole

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/apitoken-go/apitoken/console"
	"github.com/apitoken-go/apitoken/ledger"
)

// New returns what [console.Options] wants as Ledger. src is the service whose events the ledger follows; keys are those by which a
// checkpoint that somebody kept elsewhere is recognized.
func New(l *ledger.Ledger, src ledger.Source, keys ledger.Keys) console.Ledger {
	return &pages{l, src, keys}
}

type pages struct {
	ledger *ledger.Ledger
	source ledger.Source
	keys   ledger.Keys
}

// Verify implements [console.Ledger].
func (p *pages) Verify(ctx context.Context, given []byte, store bool) (v console.Verdict, err error) {
	began := time.Now()
	defer func() {
		v.Took = time.Since(began)
		var found *ledger.TamperError
		if errors.As(err, &found) {
			v.Changed, err = found.Error(), nil
		}
	}()
	newest, err := p.ledger.Checkpoint(ctx)
	if err != nil {
		return v, err
	}
	now, err := p.keys.Open(newest)
	if err != nil {
		return v, err
	}
	v.Size = now.Size
	if len(given) > 0 {
		old, err := p.keys.Open(given)
		if err != nil {
			v.Changed = "the checkpoint that was given is not signed by this log's keys"
			return v, nil
		}
		v.Yours = old.Size
		if old.Size > now.Size {
			v.Changed = fmt.Sprintf("the checkpoint that was given covers %d records, the log has %d: it was cut back", old.Size, now.Size)
			return v, nil
		}
		proof, err := p.ledger.ProveConsistency(ctx, old.Size, now.Size)
		if err != nil {
			return v, err
		}
		if err := proof.Check(given, newest, p.keys); err != nil {
			v.Changed = "the log does not begin with what the given checkpoint covers: " + err.Error()
			return v, nil
		}
	}
	if err := p.ledger.Check(ctx); err != nil {
		return v, err
	}
	if store {
		return v, p.ledger.CheckSource(ctx, p.source)
	}
	return v, nil
}

// Proof implements [console.Ledger].
func (p *pages) Proof(ctx context.Context, eventID string) (position, size int64, proof []byte, err error) {
	found, checkpoint, err := p.ledger.ProveInclusion(ctx, eventID)
	if err != nil {
		return 0, 0, nil, err
	}
	proof, err = json.MarshalIndent(struct {
		Checkpoint string                `json:"checkpoint"`
		Proof      ledger.InclusionProof `json:"proof"`
	}{string(checkpoint), found}, "", "  ")
	return found.Pos, found.Size, proof, err
}

// Status implements [console.Ledger].
func (p *pages) Status() (size int64, sealed time.Time) {
	s := p.ledger.Status()
	if s.Waiting.IsZero() {
		return s.Size, s.Read
	}
	return s.Size, s.Waiting
}
