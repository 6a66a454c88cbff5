package apitoken

import (
	"context"
	"time"

	"github.com/apitoken-go/apitoken/internal/once"
)

// Once claims id until then: nil for the first caller in any process, ErrInvalidRequest for all others. It is for the jti
// of assertions and proofs.
func (s *Service) Once(ctx context.Context, id string, until time.Time) error {
	return s.claim(ctx, id, until)
}

// claim is Once.
func (s *core) claim(ctx context.Context, id string, until time.Time) error {
	return public(s.deeds().Claim(ctx, id, until))
}

func (s *core) deeds() *once.Book {
	return &once.Book{Writer: &s.writer, Now: s.now, Log: s.log, Namespace: func() string { return s.ns }, Slack: ruleSlack}
}

// DoOnce calls f unless it was done before under this name, by any process on this store; that it was done is
// remembered until then, across restarts. did is true where this call did it. f has 45 s by its context. When it fails, its
// error is returned and whoever comes next tries again; so it is, after a minute, with a process that ended within f, or that could not
// write that it was done: then f may be called a second time for the same name, which it must bear.
// ErrLimited: somebody is at it now. ErrUnavailable: the store did not answer; where did is true, f was called.
func (s *Service) DoOnce(ctx context.Context, name string, until time.Time, f func(context.Context) error) (did bool, err error) {
	if name == "" || f == nil {
		return false, fail(ErrInvalidRequest, "a deed without a name or a function")
	}
	did, err = s.deeds().Do(ctx, name, until, f)
	return did, public(err)
}
