package apitoken

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"unsafe"

	is "github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken/internal/fault"
)

// A token is found by its whole text, wherever the cache keeps that, and by nobody's memory but its own.
func TestTheCacheComparesWholeTexts(t *testing.T) {
	t.Parallel()
	c := NewCache(32 << 20)
	v := newValidator(Validation{Cache: c}, "https://api.example.com", nil)
	tail := strings.Repeat("s", 64) // the same for all, so that all have one hash
	for i, n := range []int{65, 375, 376, 377, 504, 505, 760, 761, 1272, 1273, longestBehind, longestBehind + 1, 8 << 10} {
		text := []byte(strings.Repeat(string(rune('A'+i)), n-len(tail)) + tail)
		e := newEntry(string(text))
		h := c.hash(e.token())
		e.hash, e.v, e.gen, e.exp = h, v, v.gen.Load(), 1<<40
		c.keep(e)
		is.Equal(t, string(text), e.token(), n)
		is.Same(t, e, c.find(v, h, string(text)), n)
		is.GreaterOrEqual(t, int(e.size), n+int(unsafe.Sizeof(*e)), n)
		for _, at := range []int{0, (n - len(tail)) / 2, n - len(tail) - 1} {
			text[at] ^= 1
			is.Equal(t, h, c.hash(string(text)))
			is.Nil(t, c.find(v, h, string(text)), "%d bytes, another at %d", n, at)
			text[at] ^= 1
		}
		is.Nil(t, c.find(v, h, string(text[1:])), n)
		is.Nil(t, c.find(v, h, "A"+string(text)), n)

		caller := bytes.Clone(text)
		mine := newEntry(unsafe.String(&caller[0], len(caller)))
		clear(caller)
		is.Equal(t, string(text), mine.token(), n)
	}
}

// The context of a token may lie in the memory of its parent's, which never shows it, and is given away once.
func TestAContextHasTheTokenItWasMadeWith(t *testing.T) {
	t.Parallel()
	make := func(subject string) Token {
		x, err := NewToken(TokenSpec{Subject: subject})
		is.NoError(t, err)
		return x
	}
	origin := Origin{RequestID: "r1"}
	parent := WithOrigin(context.Background(), origin)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			name := strconv.Itoa(i)
			ctx := NewContext(parent, make(name))
			for range 100 {
				is.Equal(t, name, FromContext(ctx).Subject())
				is.Equal(t, origin, OriginOf(ctx))
				is.Equal(t, "inner"+name, FromContext(NewContext(ctx, make("inner"+name))).Subject())
				is.True(t, FromContext(parent).IsZero())
				is.True(t, FromContext(context.WithValue(parent, originKey{}, nil)).IsZero())
				is.Equal(t, name, FromContext(context.WithValue(ctx, originKey{}, nil)).Subject())
			}
		})
	}
	wg.Wait()
	is.True(t, FromContext(parent).IsZero())
}

// Operators see the whole chain, whichever package an error began in.
func TestACauseSaysWhatItKnows(t *testing.T) {
	t.Parallel()
	root := fault.NoAnswer(errors.New("engine: connection lost"), "read")
	for name, err := range map[string]error{
		"made here":   unavailable(root, "follow the store"),
		"made behind": public(&fault.Error{Code: fault.InvalidRequest, Detail: "the new content", Cause: root}),
		"deeper":      public(fault.NoAnswer(fault.NoAnswer(root, "one"), "two")),
	} {
		is.Contains(t, fmt.Sprint(err), "read: engine: connection lost", name)
		for err != nil {
			ours, ok := err.(*Error)
			if !ok {
				is.EqualError(t, err, "engine: connection lost", name)
				break
			}
			err = ours.Cause
		}
	}
}
