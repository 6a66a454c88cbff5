// Package move moves a service, with everything it keeps, from one store to another while it works: from a file to Postgres, say.
package move

import (
	"context"
	"time"

	_ "github.com/apitoken-go/apitoken" // knows the records, and sets mover.Service
	"github.com/apitoken-go/apitoken/internal/mover"
	"github.com/apitoken-go/apitoken/store"
)

// Copied tells what Copy moved.
type Copied struct {
	Records map[store.Kind]int // by kind, without what had expired
	Events  int
	Digest  [32]byte      // over all records, equal on both sides
	Refused time.Duration // how long the source refused writes until all was verified
}

// Copy moves the service in from's namespace to to's, which must be empty. Services on from continue meanwhile. While the last
// changes are copied and everything is compared, they answer writes with apitoken.ErrUnavailable; then they find the service
// moved: they take no more writes, and answer ErrUnavailable to everything after MaxStaleness. Start the service on to
// then. Tokens, revocations in their order, sessions, API keys, clients, signing keys, events and the places of sinks stay
// what they were. A record that cannot be read is copied as it is.
//
// from must have SetReadOnly(ctx, bool) error, as the stores of this module do; without it the error is ErrInvalidRequest. If
// Copy fails, from takes writes again. Repeat an interrupted Copy with the same stores, and it continues; to cannot be used before
// Copy has succeeded.
//
// An engine may show an event in its final order a while after it was written, as Postgres does while a long transaction
// is open. Copy waits for that as long as ctx allows before it makes from refuse writes, and for a few seconds after that;
// then it gives up with ErrUnavailable.
func Copy(ctx context.Context, from, to store.Store) (Copied, error) {
	done, err := mover.Service(ctx, from, to)
	return Copied(done), err
}
