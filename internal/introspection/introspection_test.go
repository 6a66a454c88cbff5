package introspection_test

import (
	"context"
	"crypto/rand"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken/feed"
	"github.com/apitoken-go/apitoken/internal/fault"
	"github.com/apitoken-go/apitoken/internal/introspection"
	"github.com/apitoken-go/apitoken/internal/issuers"
	"github.com/apitoken-go/apitoken/internal/opaque"
	"github.com/apitoken-go/apitoken/internal/rules"
	"github.com/apitoken-go/apitoken/store"
)

const staleness = 10 * time.Second

var (
	tagKey = []byte("the key of the tags of API keys ")
	feedNS = "0123456789abcdef0123456789abcdef"
)

// source is a feed that has no rules. What next holds is told with the next answer.
type source struct {
	mu   sync.Mutex // guards all below
	down bool
	next feed.View
}

func (s *source) Revocations(context.Context, store.Position, int) (feed.View, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down {
		return feed.View{}, errors.New("down")
	}
	v := s.next
	v.Key, v.Namespace, v.Next = []byte("feed"), feedNS, store.Position{History: 1, N: 1}
	v.Prefix, v.APIKeyTags = "at", []feed.Tag{{KID: [4]byte{1}, Key: tagKey}}
	s.next = feed.View{}
	return v, nil
}

func (s *source) tell(f func(*source)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(s)
}

// key is an API key of the issuer's.
func key() string {
	k := opaque.Key{KID: [4]byte{1}, ID: opaque.NewID(time.Now())}
	rand.Read(k.Secret[:])
	k.Tag = opaque.Tag(tagKey, opaque.APIKeyLabel, []byte(feedNS), k.ID[:], k.Secret[:])
	return opaque.EncodeKey("at", opaque.APIKey, &k)
}

// asked are Answers of an issuer that is followed, and how often it was asked; the token's ID is its text.
func asked(t *testing.T, ask func(token string) (*introspection.Answer[string], error)) (*introspection.Answers[string], *source, *atomic.Int32) {
	t.Helper()
	src, iss, n := new(source), new(issuers.Issuer), new(atomic.Int32)
	a := introspection.New(introspection.Config[string]{Issuer: iss, For: time.Minute, Now: time.Now,
		Ask: func(token string) (*introspection.Answer[string], error) {
			n.Add(1)
			if ask != nil {
				return ask(token)
			}
			return &introspection.Answer[string]{Token: token, Rule: rules.Subject{ID: token}}, nil
		}})
	iss.Init(issuers.Config{Name: "https://auth.example.com", Own: true, Feed: src, MaxStaleness: staleness, Now: time.Now, Void: func() {},
		Told: a.Told, Observe: func(context.Context, string, error, time.Duration) {}})
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { iss.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		wg.Wait()
		a.Close()
	})
	synctest.Wait() // until the first answer of the feed was taken
	return a, src, n
}

// However many callers bring a token that nobody has seen, the issuer is asked once, and its answer is kept.
func TestATokenIsAskedAboutOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a, _, n := asked(t, func(token string) (*introspection.Answer[string], error) {
			time.Sleep(time.Second)
			return &introspection.Answer[string]{Token: token}, nil
		})
		good := key()
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() {
				x, junk, err := a.Get(t.Context(), good)
				if err != nil || junk != "" || x.Token != good {
					t.Errorf("%v, %q, %v", x, junk, err)
				}
			})
		}
		wg.Wait()
		require.EqualValues(t, 1, n.Load())

		time.Sleep(50 * time.Second)
		_, _, err := a.Get(t.Context(), good)
		require.NoError(t, err)
		require.EqualValues(t, 1, n.Load())
		time.Sleep(20 * time.Second) // a minute after the question
		_, _, err = a.Get(t.Context(), good)
		require.NoError(t, err)
		require.EqualValues(t, 2, n.Load(), "its time has passed")
	})
}

// A text that cannot be a key of the issuer's is refused as junk, and the issuer is not asked.
func TestJunkIsNotAskedAbout(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a, _, n := asked(t, nil)
		forged := opaque.Key{KID: [4]byte{1}, ID: opaque.NewID(time.Now())}
		for _, text := range []string{"at_ak_x", opaque.EncodeKey("at", opaque.APIKey, &forged), opaque.EncodeKey("zz", opaque.APIKey, &forged)} {
			_, junk, err := a.Get(t.Context(), text)
			require.NoError(t, err)
			require.NotEmpty(t, junk, text)
		}
		forged.KID = [4]byte{2}
		_, _, err := a.Get(t.Context(), opaque.EncodeKey("at", opaque.APIKey, &forged))
		require.ErrorIs(t, err, fault.InvalidToken, "of a root that the issuer has not")
		require.Zero(t, n.Load())
	})
}

// An inactive token is asked about again after two seconds: its key may be new. An error is not kept at all.
func TestWhatIsNotActiveIsNotKeptLong(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var answer error
		a, _, n := asked(t, func(string) (*introspection.Answer[string], error) { return nil, answer })
		good := key()
		for range 3 {
			_, _, err := a.Get(t.Context(), good)
			require.ErrorIs(t, err, fault.InvalidToken)
		}
		require.EqualValues(t, 1, n.Load())

		time.Sleep(2 * time.Second)
		answer = fault.Retry("busy")
		for range 3 {
			_, _, err := a.Get(t.Context(), good)
			require.ErrorIs(t, err, fault.Unavailable)
		}
		require.EqualValues(t, 4, n.Load())
	})
}

// The feed tells which keys have changed: answers about them are dropped at once, and no others.
func TestAnswersEndWhenTheFeedSaysSo(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a, src, n := asked(t, nil)
		one, other := key(), key()
		get := func(token string) {
			_, _, err := a.Get(t.Context(), token)
			require.NoError(t, err)
		}
		get(one)
		get(other)
		require.EqualValues(t, 2, n.Load())

		hash := rules.HashTarget([]byte("feed"), feedNS, rules.TargetToken, "", one, "")
		src.tell(func(s *source) { s.next.Changed = [][16]byte{hash} })
		time.Sleep(staleness / 2)
		get(one)
		get(other)
		require.EqualValues(t, 3, n.Load())

		src.tell(func(s *source) { s.next.DropOpaque = true })
		time.Sleep(staleness / 2)
		get(one)
		get(other)
		require.EqualValues(t, 5, n.Load())
	})
}

// While the feed can't be read nobody is asked: what comes back could not be believed. What is kept is still found, and whoever uses it
// looks at the age of the view.
func TestNobodyIsAskedWhileTheViewIsOld(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a, src, n := asked(t, nil)
		good := key()
		_, _, err := a.Get(t.Context(), good)
		require.NoError(t, err)

		src.tell(func(s *source) { s.down = true })
		time.Sleep(2 * staleness)
		_, _, err = a.Get(t.Context(), key())
		require.ErrorIs(t, err, fault.Unavailable)
		_, _, err = a.Get(t.Context(), good)
		require.NoError(t, err)
		require.EqualValues(t, 1, n.Load())
	})
}
