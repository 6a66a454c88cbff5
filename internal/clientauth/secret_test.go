package clientauth

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	is "github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken/internal/fault"
	"github.com/apitoken-go/apitoken/internal/throttle"
)

// Where no host has chosen a secret, no wrong one is hashed slowly: with every place taken the answer comes all the same.
func TestNoSlowHashWithoutAChosenSecret(t *testing.T) {
	t.Parallel()
	c := New(Config{Now: time.Now})
	for range c.queue.free {
		is.NoError(t, c.queue.enter(t.Context(), "x", false))
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	a := guess{name: throttle.Name{Who: "made up"}, secret: "no secret of any client", proved: new(atomic.Pointer[proved]), skip: true}
	i, err := c.chosen(ended, a)
	is.NoError(t, err)
	is.Negative(t, i)

	a.skip = false
	_, err = c.chosen(ended, a)
	is.ErrorIs(t, err, fault.Unavailable, "it looks like a client now")

	for range throttle.Limit {
		c.failures.Take(a.name, time.Now())
	}
	i, err = c.chosen(ended, a)
	is.NoError(t, err, "who has failed too often waits for no hash")
	is.Negative(t, i)
}

func TestASecretThatWasRightIsNotHashedAgain(t *testing.T) {
	t.Parallel()
	c := New(Config{Now: time.Now})
	const secret = "a secret of the host's choice"
	x, err := newChosen(secret, time.Now())
	is.NoError(t, err)
	var proved atomic.Pointer[proved]
	a := guess{name: throttle.Name{Who: "batch"}, secret: secret, live: []Secret{{Hash: [32]byte{1}}, x}, proved: &proved}
	i, err := c.chosen(t.Context(), a)
	is.NoError(t, err)
	is.Equal(t, 1, i)

	for range c.queue.free {
		is.NoError(t, c.queue.enter(t.Context(), "x", false))
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	i, err = c.chosen(ended, a)
	is.NoError(t, err)
	is.Equal(t, 1, i, "with every place taken")

	a.live = a.live[:1]
	i, err = c.chosen(ended, a)
	is.NoError(t, err)
	is.Negative(t, i, "it ends with its verifier")

	a.live, a.name.Who = []Secret{x}, "another"
	_, err = c.chosen(ended, a)
	is.ErrorIs(t, err, fault.Unavailable, "it was right for one client only")
}

func TestMatch(t *testing.T) {
	t.Parallel()
	one, two := Secret{Hash: [32]byte{1}}, Secret{Hash: [32]byte{2}}
	slow := Secret{Hash: [32]byte{3}, Rounds: 1}
	is.Equal(t, 0, Match([]Secret{one, two}, one.Hash))
	is.Equal(t, 1, Match([]Secret{one, two}, two.Hash))
	is.Equal(t, -1, Match([]Secret{one, two}, [32]byte{9}))
	is.Equal(t, -1, Match([]Secret{one, slow}, slow.Hash), "a slow verifier is no hash of a generated secret")
	is.Equal(t, -1, Match(nil, [32]byte{}))
	is.Equal(t, -1, Match([]Secret{slow}, [32]byte{}))
}

func TestTextOfAHashedSecret(t *testing.T) {
	t.Parallel()
	x, err := newChosen("a secret of the host's choice", time.Now())
	is.NoError(t, err)
	y, ok, err := parse(x.text())
	is.NoError(t, err)
	is.True(t, ok)
	is.True(t, x.equal(&y))
	is.True(t, y.fits("a secret of the host's choice"))
	is.False(t, y.fits("another secret"))

	_, ok, err = parse("a secret of the host's choice")
	is.NoError(t, err)
	is.False(t, ok)
	_, ok, err = parse(x.text()[:40])
	is.ErrorIs(t, err, fault.InvalidRequest)
	is.True(t, ok)
}
