// The feed for validators without a store: revocations, keys and tags, as internal/feedlog keeps them.

package apitoken

import (
	"bytes"
	"context"
	"slices"

	"github.com/apitoken-go/apitoken/feed"
	"github.com/apitoken-go/apitoken/internal/feedlog"
	"github.com/apitoken-go/apitoken/internal/keyring"
	"github.com/apitoken-go/apitoken/store"
)

// The feed of revocations and keys is made when somebody asks for it first, see package feedlog.

// Revocations implements [feed.Source] from memory: the rules behind a position, and what a validator without a
// store needs besides. At most max entries (zero: 10,000) in one answer.
func (s *Service) Revocations(ctx context.Context, after store.Position, max int) (feed.View, error) {
	if max <= 0 || max > feedlog.MaxPage {
		max = feedlog.MaxPage
	}
	if err := s.loadFeed(ctx); err != nil {
		return feed.View{}, unavailable(err, "read the rules")
	}
	w := s.trust.look()
	age := s.trust.freshness(w, s.now()).Age
	v, ok := s.feed.Page(after, w.Pos, max)
	switch {
	case !ok:
		return feed.View{}, tryAgain("the store's history changed just now")
	case after != (store.Position{}) && after.History != w.Pos.History:
		return feed.View{}, store.ErrDiverged
	}
	v.Age, v.MaxLifetime, v.KeySet = age, s.space.Life().Access, s.SigningKeys.ring.Digest()
	s.SigningKeys.ring.EachKid(s.now(), func(kid, state string) {
		if state == "compromised" {
			v.Compromised = append(v.Compromised, kid)
		}
	})
	slices.Sort(v.Compromised)
	v.Prefix = s.cfg.Prefix
	s.SigningKeys.ring.EachMAC(keyring.APIKeyTag, func(kid [4]byte, key []byte) {
		v.APIKeyTags = append(v.APIKeyTags, feed.Tag{KID: kid, Key: bytes.Clone(key)})
	})
	slices.SortFunc(v.APIKeyTags, func(a, b feed.Tag) int { return bytes.Compare(a.KID[:], b.KID[:]) })
	return v, nil
}

// loadFeed makes the log if it is not there, or was hashed under a key that is no longer current.
func (s *Service) loadFeed(ctx context.Context) error {
	root, _ := s.SigningKeys.ring.MAC(keyring.Feed)
	if s.feed.Under(root) {
		return nil
	}
	if err := s.state.Refresh(ctx); err != nil {
		return err
	}
	release, err := s.state.Hold(ctx)
	if err != nil {
		return err
	}
	defer release()
	root, key := s.SigningKeys.ring.MAC(keyring.Feed)
	return s.feed.Load(ctx, s.st, s.state.Position(), s.ns, root, key, len(s.cfg.KeyHashes) > 0)
}

// Wait returns when this process's view of the state is not at p, or ctx ends. For long polls of [Service.Revocations].
func (a *Adapter) Wait(ctx context.Context, p store.Position) error {
	for {
		moved := a.state.Moved()
		if a.state.Position() != p {
			return nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return ctx.Err()
		case <-a.ctx.Done():
			return unavailable(a.ctx.Err(), "closed")
		}
	}
}
