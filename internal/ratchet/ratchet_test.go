package ratchet

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken/internal/fault"
	"github.com/apitoken-go/apitoken/internal/opaque"
)

// one is a root secret for each purpose.
type one map[string][]byte

func (k one) MAC(purpose string) ([4]byte, []byte)            { return [4]byte{1}, k[purpose] }
func (k one) MACFor(_ [4]byte, purpose string) ([]byte, bool) { b, ok := k[purpose]; return b, ok }
func (k one) Presented(_ context.Context, _ [4]byte, purpose string) ([]byte, error) {
	return k[purpose], nil
}

func newRatchet() *Ratchet {
	return &Ratchet{Keys: one{"refresh-tag": make([]byte, 32), "refresh-next": []byte("next key of thirty-two bytes ...")}, Namespace: func() string { return "ns" }, Prefix: "at"}
}

// Whoever has a token and the state gets to the same successor; a state tells each token's place; junk ends at the tag.
func TestEachTokenHasItsPlace(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	r := newRatchet()
	grant := opaque.NewID(time.Now()).String()
	state, text, err := r.First(grant, "")
	require.NoError(t, err)
	var texts []string
	states := []State{state}
	for range 3 {
		texts = append(texts, text)
		token, err := r.Read(ctx, text)
		require.NoError(t, err)
		require.Equal(t, grant, opaque.ID(token.Grant).String())
		state, text, err = r.Next(token)
		require.NoError(t, err)
		states = append(states, state)
	}
	texts = append(texts, text)

	for i, text := range texts {
		token, err := r.Read(ctx, text)
		require.NoError(t, err)
		for j := range states {
			place, next, err := r.Place(token, &states[j])
			require.NoError(t, err)
			switch {
			case i > j:
				require.Equal(t, Ahead, place)
			case i == j:
				require.Equal(t, Current, place)
			case i+1 == j:
				require.Equal(t, Previous, place)
				require.Equal(t, texts[j], next)
			default:
				require.Equal(t, Older, place)
			}
		}
	}

	edited := states[1]
	edited.Hash[0] ^= 1
	for _, text := range texts[:2] {
		token, err := r.Read(ctx, text)
		require.NoError(t, err)
		place, _, err := r.Place(token, &edited)
		require.NoError(t, err)
		require.Equal(t, Forged, place)
	}
	other := newRatchet()
	other.Namespace = func() string { return "another" }
	_, err = other.Read(ctx, texts[0])
	require.True(t, errors.Is(err, fault.InvalidGrant))
}

// The first token that a code got can be made again from the code and the state, and from nothing less.
func TestTheFirstTokenOfACode(t *testing.T) {
	t.Parallel()
	r := newRatchet()
	grant := opaque.NewID(time.Now()).String()
	state, text, err := r.First(grant, "code")
	require.NoError(t, err)
	again, err := r.FirstAgain(&state, grant, "code")
	require.NoError(t, err)
	require.Equal(t, text, again)
	_, err = r.FirstAgain(&state, grant, "another")
	require.True(t, errors.Is(err, fault.InvalidGrant))
	r.Keys = one{}
	_, err = r.FirstAgain(&state, grant, "code")
	require.True(t, errors.Is(err, fault.Unavailable))
}
