"""Our attacks next to those of AutoAttack, adv-lib and Foolbox, on the same networks and images."""
