"""Families of heterogeneity: one file each. `FAMILIES` maps short names to where they live."""

FAMILIES: dict[str, str] = {
    "homogeneous": "hetmodels.families.homogeneous.Homogeneous",
    "classes": "hetmodels.families.classes.Classes",
}
