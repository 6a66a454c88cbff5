package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/apitoken-go/apitoken"
)

// targets are the words for what can be revoked.
var targets = []struct {
	word, about string
	of          func(string) apitoken.Target
}{
	{"subject", "all that a subject holds: sessions, tokens and API keys", apitoken.BySubject},
	{"sessions", "a subject's sessions and tokens, not its API keys", apitoken.BySessions},
	{"client", "all that a client holds", apitoken.ByClient},
	{"session", "one session", apitoken.ByGrant},
	{"token", "one access token or API key, by its ID", apitoken.ByToken},
	{"role", "the tokens that carry a role, until they are refreshed", apitoken.ByRole},
	{"signing-key", "all that a key signed; signing-keys compromise replaces the key too", apitoken.BySigningKey},
}

func (a *app) revokeCommand() *cobra.Command {
	var reason, heldBy, before, leaked string
	var yes bool
	var words strings.Builder
	for _, t := range targets {
		fmt.Fprintf(&words, "  %-12s %s\n", t.word, t.about)
	}
	c := &cobra.Command{
		Use: "revoke WHAT [NAME]", Short: "End sessions, tokens and API keys",
		Long: "revoke ends what a target names, in every process within its bound. WHAT is one of\n\n" + words.String() +
			"  everything   every token and API key of the service; needs --yes\n\nWith --leaked it ends the credentials that a text holds, such as a log, and takes no WHAT.",
		Args: func(_ *cobra.Command, args []string) error {
			switch {
			case leaked != "" && len(args) == 0, leaked == "" && len(args) == 2 && args[0] != "everything", leaked == "" && len(args) == 1 && args[0] == "everything":
				return nil
			}
			return usage("Such as revoke subject alice --reason \"a lost laptop\".", "revoke takes what and its name")
		},
		RunE: func(c *cobra.Command, args []string) error {
			if leaked != "" {
				return a.revokeLeaked(c.Context(), leaked, reason)
			}
			t := apitoken.Everything()
			if args[0] == "everything" {
				if !yes {
					return usage("Add --yes if every token and API key of the service is to end.", "nothing was revoked")
				}
			} else {
				t = apitoken.Target{}
				if looksSecret(args[1]) {
					return usage("Pipe it in: revoke --leaked - --reason …", "a token is no name, and does not belong on a command line")
				}
				for _, x := range targets {
					if x.word == args[0] {
						t = x.of(args[1])
					}
				}
				if t.IsZero() {
					return usage("See apitoken help revoke.", "%q is nothing that can be revoked", args[0])
				}
			}
			if heldBy != "" {
				t = t.HeldBy(heldBy)
			}
			if before != "" {
				then, err := when(before, time.Now())
				if err != nil {
					return err
				}
				t = t.IssuedBefore(then)
			}
			return a.revoke(c.Context(), t, reason)
		},
	}
	reasonFlag(c, &reason)
	c.Flags().StringVar(&heldBy, "held-by", "", "only what this `client` holds")
	c.Flags().StringVar(&before, "issued-before", "", "only what was issued until then: a time, or how long ago")
	c.Flags().StringVar(&leaked, "leaked", "", "`file` of at most 1 MiB that holds what is to end; - is the standard input")
	c.Flags().BoolVar(&yes, "yes", false, "with everything: it is meant")
	return c
}

func (a *app) revoke(ctx context.Context, t apitoken.Target, reason string) error {
	if err := needReason(reason); err != nil {
		return err
	}
	return a.with(ctx, func(ctx context.Context, s *service) error {
		if err := s.Revoke(ctx, t, reason); err != nil {
			return err
		}
		return a.didIt(t.String()+" is revoked", "revoked", t.String())
	})
}

func (a *app) revokeLeaked(ctx context.Context, path, reason string) error {
	if err := needReason(reason); err != nil {
		return err
	}
	text, err := a.read(path, 1<<20)
	if err != nil {
		return err
	}
	return a.with(ctx, func(ctx context.Context, s *service) error {
		if err := s.mayMake(); err != nil {
			return err
		}
		n, err := s.RevokeLeaked(ctx, text, reason)
		if err != nil {
			return err
		}
		if a.json {
			return a.print(map[string]int{"ended": n})
		}
		a.note("%d credentials of this service were in it and are ended.", n)
		return nil
	})
}
