package apitoken_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
)

// An issuer or a client whose clock is ahead by Validation.Skew is accepted, by no more.
func TestClocksThatAreAhead(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		skew, ahead time.Duration
		good        bool
	}{{0, 8 * time.Second, true}, {0, 20 * time.Second, false}, {-1, 5 * time.Second, false}, {time.Minute, 55 * time.Second, true}} {
		ctx := context.Background()
		behind := &clock{}
		svc := service(t, nil)
		v := follower(t, &poll{svc: svc}, func(cfg *apitoken.ValidatorConfig) { cfg.Now, cfg.Validation.Skew = behind.Now, c.skew })
		behind.Advance(-c.ahead)
		i := issue(t, svc, apitoken.Request{Subject: "alice"})
		_, err := v.Validate(ctx, apitoken.Bearer(i.Access.Reveal()))
		if c.good {
			require.NoError(t, err, "%+v", c)
		} else {
			require.ErrorIs(t, err, apitoken.ErrInvalidToken, "%+v", c)
		}
	}
	require.NotContains(t, fmt.Sprintf("%v %+v", apitoken.Proof{JWT: "eyJ"}, apitoken.Proof{JWT: "eyJ"}), "eyJ")
}
